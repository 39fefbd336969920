// A block trains a network that it keeps in shared memory, tile by tile of samples: the work of resident.cu and
// resident_cluster.cu, which have the formulas.

#include "async_copies.cuh"
#include "optimizer_rules.cuh"
#include "resident_layers.cuh"

// Samples of an epoch that a block works on at a time: `start` is the place in its batch, of `size` samples.
struct Samples {
    int epoch, batch, start, size;
};

// What the threads of a block tell each other. resident_plan.py has the size.
struct Scratch {
    double sums[WARPS];                             // of `sum_over_threads`
    double weighted_losses[WARPS], weights[WARPS];  // Σ w j and Σ w of the batch, of each warp's samples
    double rate, epsilon, decoupled;                // of the step
    double epoch_loss;
};

// A network that one block has as a whole: nothing is exchanged.
struct Alone {
    __device__ __forceinline__ static void begin() {}
    template <typename T>
    __device__ __forceinline__ static void add_logits(T*, int, int) {}
    __device__ __forceinline__ static double add(double sum) { return sum; }
    __device__ __forceinline__ static bool writes_losses() { return true; }
};

template <typename T, Arithmetic KIND, typename Blocks>
struct Trainer {
    const Job<T>& job;
    const Plan& plan;
    T* const numbers;
    const Layers<T, KIND> layers;
    Blocks blocks;
    const int activation, loss;
    const T most;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    __device__ __forceinline__ Trainer(const Job<T>& job, const Plan& plan, T* numbers, Blocks blocks, int activation,
                                       int loss, T most)
        : job(job), plan(plan), numbers(numbers), layers{plan, reinterpret_cast<const Layer*>(&plan + 1), numbers},
          blocks(blocks), activation(activation), loss(loss), most(most) {}

    __device__ __forceinline__ const Layer& layer(int l) const { return layers.layers[l]; }
    __device__ __forceinline__ Scratch& scratch() const { return *reinterpret_cast<Scratch*>(numbers + plan.scratch); }
    __device__ __forceinline__ T* X(int buffer) const { return numbers + plan.X + buffer * plan.x_size; }
    __device__ __forceinline__ T* Y(int buffer) const { return numbers + plan.Y + buffer * plan.samples * plan.n_out; }
    __device__ __forceinline__ T* weights(int buffer) const { return numbers + plan.weights + buffer * plan.samples; }
    __device__ __forceinline__ Index* rows(int buffer) const {
        return reinterpret_cast<Index*>(numbers + plan.rows) + buffer * plan.samples;
    }

    // Parameters ------------------------------------------------------------------------------------------------------

    // Calls f(place in shared memory, place in the flat vector) for every parameter.
    template <typename F>
    __device__ __forceinline__ void for_each_parameter(F f) const {
#pragma unroll 1
        for (int l = 0; l < plan.layers; ++l) {
            const Layer& own = layer(l);
#pragma unroll 1
            for (int k = warp; k < own.n_in; k += WARPS)
#pragma unroll 1
                for (int u = lane; u < own.n_out; u += 32) f(own.W + k * own.pitch + u, own.flat_W + k * own.flat_pitch + u);
            if (own.b < 0) continue;
#pragma unroll 1
            for (int u = threadIdx.x; u < own.n_out; u += THREADS) f(own.b + u, own.flat_b + u);
        }
    }

    __device__ __forceinline__ void read_parameters(int epoch) const {
        for (int i = threadIdx.x; i < plan.scratch; i += THREADS) numbers[i] = 0;
        if (threadIdx.x == 0) scratch().epoch_loss = job.losses[epoch];
        __syncthreads();
        for_each_parameter([&](int i, int flat) {
            numbers[i] = job.theta[flat];
            if (plan.first >= 0) numbers[plan.first + i] = job.first[flat];
            if (plan.second >= 0) numbers[plan.second + i] = job.second[flat];
        });
    }

    __device__ __forceinline__ void write_parameters() const {
        for_each_parameter([&](int i, int flat) {
            job.theta[flat] = numbers[i];  // own: a network is one block's
            if (plan.first >= 0) job.first[flat] = numbers[plan.first + i];     // own: as above
            if (plan.second >= 0) job.second[flat] = numbers[plan.second + i];  // own: as above
        });
    }

    // Samples ---------------------------------------------------------------------------------------------------------

    __device__ __forceinline__ int size_of(int batch) const {
        return int(min(job.batch_size, job.samples - batch * job.batch_size));
    }
    __device__ __forceinline__ Samples after(Samples s) const {
        s.start += plan.samples;
        if (s.start < s.size) return s;
        s.start = 0;
        s.batch += 1;
        if (s.batch >= job.batches_of_epoch) s.batch = 0, s.epoch += 1;
        s.size = size_of(s.batch);
        return s;
    }
    __device__ __forceinline__ int number(const Samples& s) const {
        return s.epoch * int(job.batches_of_epoch) + s.batch;
    }
    __device__ __forceinline__ bool exists(const Samples& s) const { return number(s) < job.first_batch + job.batches; }
    __device__ __forceinline__ int count(const Samples& s) const { return min(plan.samples, s.size - s.start); }

    // Starts to copy the numbers of the samples.
    __device__ __forceinline__ void fetch_rows(const Samples& s, int buffer) const {
        if (!exists(s)) return;
        const Index first = s.batch * job.batch_size + s.start;
        for (int i = threadIdx.x; i < count(s); i += THREADS) {
            if (job.order) start_copy(rows(buffer) + i, job.order + s.epoch * job.samples + first + i);
            else rows(buffer)[i] = first + i;
        }
    }

    // Starts to copy the samples, whose numbers have arrived. Those that a short tile lacks are 0.
    __device__ __forceinline__ void fetch(const Samples& s, int buffer) const {
        if (!exists(s)) return;
        const int samples = count(s);
#pragma unroll 1
        for (int i = warp; i < plan.samples; i += WARPS) {
            T* x = X(buffer) + i * plan.x_pitch;
            const Index row = i < samples ? rows(buffer)[i] : 0;
#pragma unroll 1
            for (int k = lane; k < plan.n_in; k += 32) {
                if (i < samples) start_copy(x + k, job.X + row * job.x_line + k * job.x_step);
                else x[k] = 0;
            }
            if (i >= samples) continue;
#pragma unroll 1
            for (int o = lane; o < plan.n_out; o += 32)
                start_copy(Y(buffer) + i * plan.n_out + o, job.Y + o * job.y_line + row * job.y_step);
            if (job.weights && lane == 0) start_copy(weights(buffer) + i, job.weights + row * job.weight_step);
        }
    }

    // The output layer ------------------------------------------------------------------------------------------------

    // dz of a sample from its logits; a sample that does not exist has 0.
    __device__ __forceinline__ void output_layer(int samples, int buffer) const {
        const Layer& last = layer(plan.layers - 1);
#pragma unroll 1
        for (int s = threadIdx.x; s < plan.samples; s += THREADS) {
            const T* z = numbers + last.Z + s * last.z_pitch;
            T* dz = numbers + plan.dz + s * last.z_pitch;
            for (int o = 0; o < plan.n_out; ++o) dz[o] = z[o];
            output(loss, dz, plan.n_out, most);
            const T weight = s >= samples ? T(0) : job.weights ? weights(buffer)[s] : T(1);
            const T* y = Y(buffer) + s * plan.n_out;
            for (int o = 0; o < plan.n_out; ++o)
                dz[o] = s < samples ? weight * output_error(loss, dz[o], y[o]) : T(0);
        }
    }

    __device__ __forceinline__ static double sum_over_lanes(double x) {
        for (int lanes = 16; lanes; lanes /= 2) x += __shfl_xor_sync(0xffffffff, x, lanes);
        return x;
    }

    // Σ w j and Σ w. 32 samples are one warp's; those come first that have the fewest tiles of a product.
    __device__ __forceinline__ void add_losses(int samples, bool begins, int buffer) const {
        const Layer& last = layer(plan.layers - 1);
        double weighted_loss = 0, sum = 0;
#pragma unroll 1
        for (int first = (WARPS - 1 - warp) * 32; first < samples; first += THREADS) {
            const int s = first + lane;
            const T weight = s >= samples ? T(0) : job.weights ? weights(buffer)[s] : T(1);
            const double j = loss_of_sample(loss, numbers + last.Z + s * last.z_pitch, Y(buffer) + s * plan.n_out,
                                            Index(1), plan.n_out, most);
            weighted_loss += sum_over_lanes(s < samples ? weight * j : 0);  // what a short tile lacks has any j
            sum += sum_over_lanes(weight);
        }
        if (lane != 0) return;
        Scratch& sums = scratch();
        sums.weighted_losses[warp] = begins ? weighted_loss : sums.weighted_losses[warp] + weighted_loss;
        sums.weights[warp] = begins ? sum : sums.weights[warp] + sum;
    }

    // Σ x over the threads, in all of them. The barriers are for all threads.
    __device__ __forceinline__ double sum_over_threads(double x) const {
        x = sum_over_lanes(x);
        __syncthreads();  // an earlier sum has been read
        if (lane == 0) scratch().sums[warp] = x;
        __syncthreads();
        return sum_over_warps(scratch().sums);
    }
    __device__ __forceinline__ static double sum_over_warps(const double (&sums)[WARPS]) {
        double sum = 0;
        for (int w = 0; w < WARPS; ++w) sum += sums[w];
        return sum;
    }

    // A batch ---------------------------------------------------------------------------------------------------------

    __device__ __forceinline__ void pass(int samples, bool begins, int buffer) {
        const int last = plan.layers - 1;
        const T* A = X(buffer);
#pragma unroll 1
        for (int l = 0; l <= last; ++l) {
            layers.forward(layer(l), A, activation, l == last);
            A = numbers + layer(l).Z;
            __syncthreads();
        }
        blocks.add_logits(numbers + layer(last).Z, layer(last).z_pitch, plan.samples);
        output_layer(samples, buffer);
        __syncthreads();
        const T* dZ = numbers + plan.dz;
        add_losses(samples, begins, buffer);
#pragma unroll 1
        for (int l = last; l > 0; --l) {
            T* below = numbers + layer(l - 1).Z;
            layers.add_gradients(layer(l), below, dZ, begins);
            __syncthreads();
            layers.backward(layer(l), below, dZ, activation);
            __syncthreads();
            dZ = below;
        }
        layers.add_gradients(layer(0), X(buffer), dZ, begins);
        __syncthreads();
    }

    // Calls f(place, whether it is a weight) for the numbers of all parameters in shared memory, filled-up ones too.
    template <typename F>
    __device__ __forceinline__ void for_each_place(F f) const {
#pragma unroll 1
        for (int l = 0; l < plan.layers; ++l) {
            const Layer& own = layer(l);
#pragma unroll 2
            for (int i = threadIdx.x; i < own.rows * own.pitch; i += THREADS) f(own.W + i, true);
            if (own.b < 0) continue;
#pragma unroll 1
            for (int i = threadIdx.x; i < own.columns; i += THREADS) f(own.b + i, false);
        }
    }

    template <int R>
    __device__ __forceinline__ void update(const StepNumbers<T>& step, T decoupled) const {
        T* gradient = numbers + plan.gradient;
        for_each_place([&](int i, bool is_weight) {
            T g = step.factor * gradient[i], none = 0;
            if (is_weight) {
                g += step.decay * numbers[i];
                if (R == ADAMW) numbers[i] *= T(1) - decoupled;
            }
            T& first = R == SGD ? none : numbers[plan.first + i];
            T& second = R == ADAM || R == ADAMW ? numbers[plan.second + i] : none;
            take_step<R>(numbers[i], g, first, second, step);
        });
    }

    // What a batch's sums are multiplied by, and its L2 term.
    struct Factors {
        double factor, decay, share;
    };
    __device__ __forceinline__ Factors factors_of(int size) const {
        const bool needed = job.weights && (job.divisor == 0 || job.penalty_by_weight);
        const double sum = needed ? sum_over_warps(scratch().weights) : size;
        const double divisor = job.divisor == 0 ? sum : job.is_mean ? job.divisor * size : job.divisor;
        return {divisor != 0 ? 1 / divisor : 0, job.alpha / (job.penalty_by_weight ? sum : size),
                job.is_mean ? double(size) / double(job.samples) : 1};
    }

    __device__ __forceinline__ double clip_factor(const Factors& f) {
        double sum = 0;
        const T factor = T(f.factor), decay = T(f.decay);
        for_each_place([&](int i, bool is_weight) {
            T g = factor * numbers[plan.gradient + i];
            if (is_weight && decay != T(0)) g += decay * numbers[i];
            sum += double(g) * g;
        });
        const double clip = job.clip_norm / (sqrt(blocks.add(sum_over_threads(sum))) + job.clip_epsilon);
        return clip < 1 ? clip : 1;
    }

    // Step number t: the corrections of Adam, by one thread, while others begin with the batch.
    __device__ __forceinline__ void prepare_step(Index t, double rate) const {
        if (threadIdx.x != THREADS - 1) return;
        const bool corrected = job.rule == ADAM || job.rule == ADAMW;
        const double root = corrected ? sqrt(1 - pow(job.beta_2, double(t))) : 1;
        Scratch& step = scratch();
        step.rate = corrected ? rate * root / (1 - pow(job.beta_1, double(t))) : rate;
        step.epsilon = job.rule == ADAMW ? job.epsilon * root : job.epsilon;
        step.decoupled = job.decoupled * rate;
    }

    __device__ __forceinline__ void finish(const Samples& s) {
        const Factors f = factors_of(s.size);
        double squares = 0;
        if (job.alpha != 0) {
            for_each_place([&](int i, bool is_weight) {
                if (is_weight) squares += double(numbers[i]) * numbers[i];
            });
            squares = blocks.add(sum_over_threads(squares));
        }
        if (threadIdx.x == 0)
            scratch().epoch_loss += f.share * (job.loss_factor * f.factor * sum_over_warps(scratch().weighted_losses) +
                                               0.5 * f.decay * squares);
        const T clip = job.clip_norm > 0 ? T(clip_factor(f)) : T(1);
        const StepNumbers<T> step = {T(scratch().rate), T(f.factor) * clip, T(f.decay) * clip, T(job.beta_1),
                                     T(1 - job.beta_1), T(job.beta_2), T(1 - job.beta_2), T(scratch().epsilon), T(0)};
        const T decoupled = T(scratch().decoupled);
        if (job.rule == SGD) update<SGD>(step, decoupled);
        if (job.rule == MOMENTUM) update<MOMENTUM>(step, decoupled);
        if (job.rule == NESTEROV) update<NESTEROV>(step, decoupled);
        if (job.rule == ADAM) update<ADAM>(step, decoupled);
        if (job.rule == ADAMW) update<ADAMW>(step, decoupled);
    }

    // The epoch's loss so far, that of earlier launches too; by the thread that has summed it.
    __device__ __forceinline__ void write_loss(int epoch) const {
        if (threadIdx.x != 0 || !blocks.writes_losses()) return;
        job.losses[epoch] = scratch().epoch_loss;  // own: a network is one block's
        scratch().epoch_loss = 0;
    }

    __device__ __forceinline__ void train() {
        const int first = int(job.first_batch), epoch = first / int(job.batches_of_epoch);
        const int batch = first - epoch * int(job.batches_of_epoch);
        Samples now = {epoch, batch, 0, size_of(batch)};
        read_parameters(epoch);
        blocks.begin();
        fetch_rows(now, 0);
        wait_for_copies();
        __syncthreads();
        fetch(now, 0);
        fetch_rows(after(now), 1);
#pragma unroll 1
        for (int buffer = 0; exists(now); buffer = 1 - buffer) {
            const Samples next = after(now);
            wait_for_copies();
            __syncthreads();  // what was copied is there, and the tile before is done with
            if (plan.x_size) fetch(next, 1 - buffer);
            fetch_rows(after(next), buffer);
            if (now.start == 0) prepare_step(job.steps + number(now) - job.first_batch + 1, job.rates[now.epoch]);
            pass(count(now), now.start == 0, buffer);
            if (!plan.x_size) fetch(next, 1 - buffer);  // there is room for one tile of X
            if (now.start + plan.samples >= now.size) {
                finish(now);
                if (!exists(next) || next.epoch != now.epoch) write_loss(now.epoch);
            }
            now = next;
        }
        __syncthreads();
        write_parameters();
    }
};

// The plan, copied to the beginning of shared memory.
__device__ __forceinline__ const Plan& read_plan(const int* plan, int ints) {
    int* kept = reinterpret_cast<int*>(shared_memory);
    for (int i = threadIdx.x; i < ints; i += THREADS) kept[i] = plan[i];
    __syncthreads();
    return *reinterpret_cast<const Plan*>(kept);
}
