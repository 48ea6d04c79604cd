#pragma once
// LinearAxis, resize_row_scalar and blend_rows of resize.h for one output pixel. Intrinsics that round once and are
// never contracted keep every bit the same under any compiler flags.

#include <cuda_runtime.h>

#include <cstdint>

#include "resize.h"

namespace gliofed::cuda {

struct AxisEntry {
    int lower;
    int upper;
    int weight_lower;  // in 1/2048
    int weight_upper;
};

__device__ inline int fixed_point(float weight) { return __float2int_rn(__fmul_rn(weight, 2048.0F)); }

__device__ inline AxisEntry axis_entry(int i, int source_length, int length, EdgeRule edge) {
    const double scale = __ddiv_rn(1.0, __ddiv_rn(length, source_length));
    const double exact = __dadd_rn(__dmul_rn(__dadd_rn(i, 0.5), scale), -0.5);
    const float position = __double2float_rn(exact);
    const int last = source_length - 1;
    int index = __float2int_rd(position);
    float fraction = __fsub_rn(position, static_cast<float>(index));
    if (edge == EdgeRule::kClampWeight && (index < 0 || index >= last)) {
        index = min(max(index, 0), last);
        fraction = 0.0F;
    }
    return {min(max(index, 0), last), min(max(index + 1, 0), last), fixed_point(__fsub_rn(1.0F, fraction)),
            fixed_point(fraction)};
}

// The four neighbours of an output pixel: a and b above, c and d below.
struct Corners {
    int a;
    int b;
    int c;
    int d;
};

// At exactly half the size every weight is 1024 and each term comes to the sum of two levels: the mean of all four,
// rounded once, which OpenCV computes apart there.
__device__ inline int blend(Corners p, const AxisEntry& x, const AxisEntry& y) {
    const int lower = (p.a * x.weight_lower + p.b * x.weight_upper) >> 4;
    const int upper = (p.c * x.weight_lower + p.d * x.weight_upper) >> 4;
    return (((lower * y.weight_lower) >> 16) + ((upper * y.weight_upper) >> 16) + 2) >> 2;
}

}  // namespace gliofed::cuda
