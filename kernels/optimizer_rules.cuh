// The rules of the optimizers for one parameter; the formulas are those of optimizer.cu.

#include "tables.cuh"

// The numbers of a step, in the order in which the host passes them.
template <typename T>
struct StepNumbers {
    T rate, factor, decay, beta_1, rest_1, beta_2, rest_2, epsilon, kept;  // kept: 1 - decoupled
};

template <int R, typename T>
__device__ __forceinline__ void take_step(T& theta, T g, T& first, T& second, const StepNumbers<T>& s) {
    if (R == SGD) {
        theta -= s.rate * g;
    } else if (R == ADAM || R == ADAMW) {
        first = s.beta_1 * first + s.rest_1 * g;
        second = s.beta_2 * second + s.rest_2 * (g * g);
        theta -= divide(s.rate * first, sqrt(second) + s.epsilon);
    } else {
        first = s.beta_1 * first - s.rate * g;
        theta += R == MOMENTUM ? first : s.beta_1 * first - s.rate * g;
    }
}
