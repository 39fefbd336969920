// The tensor cores' product m16n8k8 of TF32, for kernels/tile_products.cuh: operands of 10 bits behind the point, and float32
// sums that are cut off, not rounded.

struct Fragments {
    float a[4], b[2];
};
static Fragments fragments[1024];  // of the threads of a block

float tensor_core_round(float x) {
    unsigned bits = __float_as_uint(x);
    if ((bits & 0x7F800000) == 0x7F800000) return x;
    bits = (bits + 0x1000) & ~0x1FFFu;  // to the nearest, halves away from 0
    return __uint_as_float(bits);
}

// Of a normal number.
static inline int exponent_of(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return int(bits >> 52 & 0x7FF) - 1023;
}
static inline double power_of_two(int exponent) {
    const uint64_t bits = uint64_t(exponent + 1023) << 52;
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// The sum of a float32 number and 8 products, which are exact. As those who measured NVIDIA's tensor cores describe it (Fasi
// et al., 2021; Ootomo and Yokota, 2022): the terms are cut off, toward zero, where the largest of them has its last bit,
// and so is the sum. Some GPUs keep a bit or two more.
static inline float tensor_core_sum(const double (&terms)[9]) {
    double largest = 0, sum = 0;
    for (const double term : terms) largest = std::max(largest, fabs(term)), sum += term;
    if (!(fabs(sum) < INFINITY) || largest < 1e-30) return float(sum);
    const int last_bit = exponent_of(largest) - 23;
    const double scale = power_of_two(-last_bit);
    int64_t whole = 0;  // in units of the last bit
    for (const double term : terms) whole += int64_t(term * scale);
    if (whole == 0) return 0;
    const int64_t cut_off = int64_t(1) << std::max(0, exponent_of(fabs(double(whole))) - 23);  // float32 has no room for these bits
    return float(double(whole / cut_off * cut_off) * power_of_two(last_bit));
}

// An operand as the hardware takes it: it does not look at the last 13 bits, which would be a truncation, not a rounding.
static inline float tensor_core_operand(float x) {
    if (tensor_core_round(x) != x && x == x) complain("an operand of the tensor cores that is not rounded to TF32");
    return x;
}

void tensor_core_multiply(float& d0, float& d1, float& d2, float& d3, const float (&a)[4], const float (&b)[2]) {
    const unsigned number = current->number, lane = number % WARP, g = lane / 4, q = lane % 4;
    Fragments* warp = fragments + (number - lane);
    for (int i = 0; i < 4; ++i) warp[lane].a[i] = tensor_core_operand(a[i]);
    for (int i = 0; i < 2; ++i) warp[lane].b[i] = tensor_core_operand(b[i]);
    ask(__LINE__, SHUFFLE, ~0u, 0, 0);
    float* d[2][2] = {{&d0, &d1}, {&d2, &d3}};
    for (int row = 0; row < 2; ++row)
        for (int column = 0; column < 2; ++column) {
            double terms[9] = {*d[row][column]};
            for (unsigned k = 0; k < 8; ++k)
                terms[k + 1] = double(warp[4 * g + k % 4].a[row + 2 * (k / 4)]) * warp[4 * (2 * q + column) + k % 4].b[k / 4];
            *d[row][column] = tensor_core_sum(terms);
        }
    ask(__LINE__, SHUFFLE, ~0u, 0, 0);
}
