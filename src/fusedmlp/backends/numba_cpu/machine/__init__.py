"""What compiled code is made of: compilation, memory and records, vector registers, instructions, mathematics."""
