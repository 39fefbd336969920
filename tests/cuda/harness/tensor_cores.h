// The tensor cores' product m16n8k8 of TF32, for kernels/tile_products.cuh: operands of 10 bits behind the point, float32 sums.

struct Fragments {
    float a[4], b[2];
};
static Fragments fragments[1024];  // of the threads of a block

static inline float tensor_core_round(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof x);
    if ((bits & 0x7F800000) == 0x7F800000) return x;
    bits = (bits + 0x1000) & ~uint32_t(0x1FFF);  // to the nearest, halves away from 0
    memcpy(&x, &bits, sizeof x);
    return x;
}

// An operand as the hardware takes it: it does not look at the last 13 bits, which would be a truncation, not a rounding.
static inline float tensor_core_operand(float x) {
    if (tensor_core_round(x) != x && x == x) complain("an operand of the tensor cores that is not rounded to TF32");
    return x;
}

UNOBSERVED static inline void tensor_core_multiply(float& d0, float& d1, float& d2, float& d3, const float (&a)[4], const float (&b)[2]) {
    const unsigned number = current->number, lane = number % WARP, g = lane / 4, q = lane % 4;
    Fragments* warp = fragments + (number - lane);
    for (int i = 0; i < 4; ++i) warp[lane].a[i] = tensor_core_operand(a[i]);
    for (int i = 0; i < 2; ++i) warp[lane].b[i] = tensor_core_operand(b[i]);
    ask(__LINE__, SHUFFLE, ~0u, 0, 0);
    float* d[2][2] = {{&d0, &d1}, {&d2, &d3}};
    for (int row = 0; row < 2; ++row)
        for (int column = 0; column < 2; ++column)
            for (unsigned k = 0; k < 8; ++k)
                *d[row][column] += warp[4 * g + k % 4].a[row + 2 * (k / 4)] * warp[4 * (2 * q + column) + k % 4].b[k / 4];
    ask(__LINE__, SHUFFLE, ~0u, 0, 0);
}
