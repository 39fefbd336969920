// What the products of a kernel compute in.
//
//   STRICT  the dtype's own arithmetic
//   TF32    tensor cores (sm_80): operands of 10 bits behind the point, products exact, sums in float32
//   TF32X3  the same tensor cores, to 2e-6 of the exact product: an operand is the sum of two TF32 numbers

enum Arithmetic { STRICT, TF32, TF32X3 };
