// Whole epochs of small networks in one launch: a block trains a network, which stays in the block's shared memory.
//
//   of every batch, in tiles of `samples`:   A_l = f(A_{l-1} W_l + b_l), the output layer by the loss (losses.cuh),
//       dW_l += A_{l-1}ᵀ dZ_l, db_l += Σ dZ_l, dZ_{l-1} = (dZ_l W_lᵀ) ⊙ f'(A_{l-1})         (resident_layers.cuh)
//   then   factor = 1 / Σ w, or 1 / divisor;  J = factor Σ w j + decay Σ W² / 2;  loss of the epoch += share J
//          θ by the optimizer's rule along clip (factor gradient + decay W)                  (optimizer_rules.cuh)
//
//   jobs (gridDim.x,)     a network each: its arrays in global memory, and its numbers (`Job`, cuda_tables.py)
//   plan                  the sizes, and where everything lies in shared memory (`Plan` and its `Layer`s); the same for all
//
// A block reads θ and the moments, trains on the batches first_batch to first_batch + batches of epochs that follow one
// another, and writes them back. Batch b of an epoch has the samples order[b batch_size + ...] of X (n_in, m), Y
// (n_out, m) and weights (m,), of any strides. Behind the last batch of an epoch come those of the validation samples, of
// which only Σ w j and Σ w are computed. Then, if the job asks for it, the parameters are copied where the epoch was the
// best one, and the network stops where its patience is at its end, or where a loss or a parameter is not finite. What it
// has reached is in its `Record`, so that a launch may end between any two batches. While a tile is worked on, the next one is copied to shared memory, and the
// numbers of the samples of the one after that (async_copies.cuh). Sums have a fixed order: the same bits every time, and
// the same ones alone and among many.
//
// Bytes moved, in elements: (n_in + n_out) m an epoch, 2 (1 + moments) P a launch, P the number of parameters; P
// where an epoch is the best. Flops: 6 P m an epoch, and 4 P to 16 P a batch; 2 P for a validation sample. Accesses of shared memory bound it. With TF32X3 the products
// have three times as many flops.

#include "common.cuh"
#include "resident_block.cuh"

// Shared memory: the plan, then the numbers.
template <typename T, Arithmetic KIND>
__device__ __forceinline__ void resident(const Job<T>* jobs, const int* plan, int ints, int activation, int loss, T most) {
    const Plan& own = read_plan(plan, ints);
    T* numbers = reinterpret_cast<T*>(shared_memory + own.begin);
    Trainer<T, KIND, Alone>(jobs[blockIdx.x], own, numbers, Alone(), activation, loss, most).train();
}

// Of a multiprocessor: what the registers leave room for. With TF32X3 they hold both parts of the operands.
template <typename T, Arithmetic KIND>
constexpr int BLOCKS = sizeof(T) == 8 ? 1 : KIND == TF32X3 ? 2 : 3;

#define RESIDENT(T, KIND, t)                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS, (BLOCKS<T, KIND>))                                      \
        resident_##t(const Job<T>* jobs, const int* plan, int ints, int activation, int loss, T most) {           \
        resident<T, KIND>(jobs, plan, ints, activation, loss, most);                                              \
    }

#ifdef ONE  // -DONE=float,STRICT,float32: a network uses one of these kernels
#define JUST(...) RESIDENT(__VA_ARGS__)
JUST(ONE)
#else
RESIDENT(float, STRICT, float32)
RESIDENT(double, STRICT, float64)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
RESIDENT(float, TF32, tf32)
RESIDENT(float, TF32X3, tf32x3)
#endif
#endif
