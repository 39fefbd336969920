"""The fused engines against other libraries: ``-m bench.peers`` on a CPU, ``-m bench.peers.gpu`` on a GPU."""
