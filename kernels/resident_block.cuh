// A block trains a network that it keeps in shared memory, tile by tile of samples: the work of resident.cu and
// resident_cluster.cu, which have the formulas.

#include "optimizer_rules.cuh"
#include "resident_layers.cuh"
#include "resident_samples.cuh"

// What the threads of a block tell each other. resident_plan.py has the size.
struct Scratch {
    double sums[WARPS];                             // of `sum_over_threads`
    double weighted_losses[WARPS], weights[WARPS];  // Σ w j and Σ w of the batch, of each warp's samples
    double rate, epsilon, decoupled;                // of the step
    Index begin;                                    // when this launch began with the epoch
    Record record;                                  // one thread's alone, but for the end of an epoch
};

// The GPU's clock.
__device__ __forceinline__ Index nanoseconds() {
#ifndef __CUDA_ARCH__
    return time_in_nanoseconds();
#else
    Index now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    return now;
#endif
}

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
    const Tiles<T> tiles;
    Blocks blocks;
    const int activation, loss;
    const T most;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    __device__ __forceinline__ Trainer(const Job<T>& job, const Plan& plan, T* numbers, Blocks blocks, int activation,
                                       int loss, T most)
        : job(job), plan(plan), numbers(numbers), layers{plan, reinterpret_cast<const Layer*>(&plan + 1), numbers},
          tiles{job, plan, numbers}, blocks(blocks), activation(activation), loss(loss), most(most) {}

    __device__ __forceinline__ const Layer& layer(int l) const { return layers.layers[l]; }
    __device__ __forceinline__ Scratch& scratch() const { return *reinterpret_cast<Scratch*>(numbers + plan.scratch); }

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

    __device__ __forceinline__ void read_parameters() const {
        for (int i = threadIdx.x; i < plan.scratch; i += THREADS) numbers[i] = 0;
        if (threadIdx.x == 0) scratch().record = *job.record, scratch().begin = nanoseconds();
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
            const T weight = s >= samples ? T(0) : job.train.weights ? tiles.weights(buffer)[s] : T(1);
            const T* y = tiles.Y(buffer) + s * plan.n_out;
            for (int o = 0; o < plan.n_out; ++o)
                dz[o] = s < samples ? weight * output_error(loss, dz[o], y[o]) : T(0);
        }
    }

    __device__ __forceinline__ static double sum_over_lanes(double x) {
        for (int lanes = 16; lanes; lanes /= 2) x += __shfl_xor_sync(0xffffffff, x, lanes);
        return x;
    }

    // Σ w j and Σ w. 32 samples are one warp's; those come first that have the fewest tiles of a product.
    __device__ __forceinline__ void add_losses(int samples, bool begins, int buffer, bool weighted) const {
        const Layer& last = layer(plan.layers - 1);
        double weighted_loss = 0, sum = 0;
#pragma unroll 1
        for (int first = (WARPS - 1 - warp) * 32; first < samples; first += THREADS) {
            const int s = first + lane;
            const T weight = s >= samples ? T(0) : weighted ? tiles.weights(buffer)[s] : T(1);
            const double j = loss_of_sample(loss, numbers + last.Z + s * last.z_pitch, tiles.Y(buffer) + s * plan.n_out,
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

    // Of validation samples only the losses.
    __device__ __forceinline__ void pass(const Samples& now, int buffer) {
        const int last = plan.layers - 1, samples = tiles.count(now);
        const bool begins = now.start == 0;
        const T* A = tiles.X(buffer);
#pragma unroll 1
        for (int l = 0; l <= last; ++l) {
            layers.forward(layer(l), A, activation, l == last);
            A = numbers + layer(l).Z;
            __syncthreads();
        }
        blocks.add_logits(numbers + layer(last).Z, layer(last).z_pitch, plan.samples);
        if (!tiles.trains(now)) {
            add_losses(samples, begins, buffer, job.validation.weights);
            __syncthreads();
            return;
        }
        output_layer(samples, buffer);
        __syncthreads();
        const T* dZ = numbers + plan.dz;
        add_losses(samples, begins, buffer, job.train.weights);
#pragma unroll 1
        for (int l = last; l > 0; --l) {
            T* below = numbers + layer(l - 1).Z;
            layers.add_gradients(layer(l), below, dZ, begins);
            __syncthreads();
            layers.backward(layer(l), below, dZ, activation);
            __syncthreads();
            dZ = below;
        }
        layers.add_gradients(layer(0), tiles.X(buffer), dZ, begins);
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
        const bool needed = job.train.weights && (job.divisor == 0 || job.penalty_by_weight);
        const double sum = needed ? sum_over_warps(scratch().weights) : size;
        const double penalized = job.penalty_by_weight ? sum : size;
        const double divisor = job.divisor == 0 ? sum : job.is_mean ? job.divisor * size : job.divisor;
        return {divisor != 0 ? 1 / divisor : 0, penalized != 0 ? job.alpha / penalized : 0,
                job.is_mean ? double(size) / double(job.train.samples) : 1};
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
            scratch().record.loss += f.share * (job.loss_factor * f.factor * sum_over_warps(scratch().weighted_losses) +
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

    // The validation samples of a batch.
    __device__ __forceinline__ void add_validation() const {
        if (threadIdx.x != 0) return;
        scratch().record.validation_loss += sum_over_warps(scratch().weighted_losses);
        scratch().record.validation_weight += sum_over_warps(scratch().weights);
    }

    // An epoch ----------------------------------------------------------------------------------------------------------

    // The end of an epoch, as `Training` has it; whether the network goes on. All blocks of a cluster have the same losses.
    __device__ __forceinline__ bool end_epoch(int epoch) {
        Record& record = scratch().record;
        double sum = 0;
        if (!job.best && threadIdx.x != 0) return true;
        if (job.best) {
            __syncthreads();  // the last step has been taken
            for_each_parameter([&](int i, int) { sum += numbers[i] - numbers[i] == T(0) ? 0 : 1; });
            sum = blocks.add(sum_over_threads(sum));  // after this, all threads see what one has summed
        }
        const bool validates = job.validation.batches > 0;
        const double average = job.is_mean ? record.validation_loss / record.validation_weight : record.validation_loss;
        const double own = record.loss, J = validates ? average : own;
        const bool better = J < record.best_loss;
        const Index since = J < record.best_loss - job.tolerance ? 0 : record.epochs_since + 1;
        Index end = END_DONE;
        if (job.best) {
            if (own - own != 0 || J - J != 0) end = END_LOSS;
            else if (sum != 0) end = END_WEIGHTS;
            else if (job.patience > 0 && since >= job.patience) end = END_PATIENCE;
            if (better && end != END_LOSS && end != END_WEIGHTS)
                for_each_parameter([&](int i, int flat) { job.best[flat] = numbers[i]; });  // own: a network is one block's
            __syncthreads();  // all threads have read the record
        }
        if (threadIdx.x != 0) return end == END_DONE;
        const Index now = nanoseconds();
        if (blocks.writes_losses()) {
            job.losses[epoch] = own;  // own: a network is one block's
            if (validates) job.validation_losses[epoch] = average;  // own: as above
            job.nanoseconds[epoch] = record.nanoseconds + double(now - scratch().begin);  // own: as above
        }
        if (end == END_DONE || end == END_PATIENCE) {
            record.epochs_since = since;
            if (better) record.best_loss = J, record.best_epoch = epoch;
        }
        record.epochs = epoch + 1;
        record.end = end;
        record.loss = record.validation_loss = record.validation_weight = record.nanoseconds = 0;
        scratch().begin = now;
        return end == END_DONE;
    }

    __device__ __forceinline__ void write_record() const {
        if (threadIdx.x != 0 || !blocks.writes_losses()) return;
        scratch().record.nanoseconds += double(nanoseconds() - scratch().begin);
        *job.record = scratch().record;  // own: a network is one block's
    }

    // Batches of the job, until it ends; nothing where it has ended in an earlier launch.
    __device__ __forceinline__ void train() {
        if (job.record->end != END_DONE) return;
        const int first = int(job.first_batch), epoch = first / tiles.batches(), batch = first - epoch * tiles.batches();
        Samples now = {epoch, batch, 0, tiles.size_of(batch)};
        read_parameters();
        blocks.begin();
        tiles.fetch_rows(now, 0);
        wait_for_copies();
        __syncthreads();
        tiles.fetch(now, 0);
        tiles.fetch_rows(tiles.after(now), 1);
#pragma unroll 1
        for (int buffer = 0; tiles.exists(now); buffer = 1 - buffer) {
            const Samples next = tiles.after(now);
            wait_for_copies();
            __syncthreads();  // what was copied is there, and the tile before is done with
            if (plan.x_size) tiles.fetch(next, 1 - buffer);
            tiles.fetch_rows(tiles.after(next), buffer);
            const bool trains = tiles.trains(now);
            if (trains && now.start == 0)
                prepare_step(job.steps + now.epoch * job.train.batches + now.batch + 1, job.rates[now.epoch]);
            pass(now, buffer);
            if (!plan.x_size) tiles.fetch(next, 1 - buffer);  // there is room for one tile of X
            if (now.start + plan.samples >= now.size) {
                if (trains) finish(now);
                else add_validation();
                if (now.batch + 1 == tiles.batches() && !end_epoch(now.epoch)) break;
            }
            now = next;
        }
        wait_for_copies();  // those for the epoch after the last one
        __syncthreads();
        write_parameters();
        write_record();
    }
};

// The plan, copied to the beginning of shared memory.
__device__ __forceinline__ const Plan& read_plan(const int* plan, int ints) {
    int* kept = reinterpret_cast<int*>(shared_memory);
    for (int i = threadIdx.x; i < ints; i += THREADS) kept[i] = plan[i];
    __syncthreads();
    return *reinterpret_cast<const Plan*>(kept);
}
