#pragma once
// The five-tap bilateral filter for one column of a band of a crop, by a block of one thread a column.

#include <cuda_runtime.h>

#include <cstdint>

#include "denoise_weights.h"
#include "pipeline.h"
#include "plan.h"

namespace gliofed::cuda {

inline constexpr int kSide = static_cast<int>(kCropSide);
inline constexpr int kLevels = 256;

static_assert(kLevels == kSide, "one thread a column also copies one entry of each table");

struct NeighbourWeights {
    float of[kLevels];
};

// Row 0 is the one above the band.
struct StagedCrop {
    std::uint8_t pixels[kSourceRows + 2][kSide];
};

// Rows [first, first + num_rows) and one more at either end; beyond the crop's edge it is mirrored.
__device__ inline void load_crop(const std::uint8_t* crop, int first, int num_rows, StagedCrop& staged) {
    constexpr int kGroup = 4;
    for (int i = static_cast<int>(threadIdx.x); i < (num_rows + 2) * (kSide / kGroup); i += kSide) {
        const int row = i / (kSide / kGroup);
        const int x = i % (kSide / kGroup) * kGroup;
        int y = first - 1 + row;
        if (y < 0) y = 1;
        if (y == kSide) y = kSide - 2;
        *reinterpret_cast<uchar4*>(&staged.pixels[row][x]) =
            *reinterpret_cast<const uchar4*>(crop + y * kSide + x);
    }
}

// Calls store(row, level) for each row of the thread's column. In the order of sums of denoise_scalar; intrinsics
// round once and are never contracted.
template <class Store>
__device__ void denoise_column(const StagedCrop& crop, const NeighbourWeights& weights, int num_rows, Store store) {
    const int x = static_cast<int>(threadIdx.x);
    const int x_left = x == 0 ? 1 : x - 1;
    const int x_right = x == kSide - 1 ? kSide - 2 : x + 1;
    int up = crop.pixels[0][x];
    int here = crop.pixels[1][x];
    float weight_up = weights.of[abs(up - here)];
    for (int row = 0; row < num_rows; ++row) {
        const int left = crop.pixels[row + 1][x_left];
        const int right = crop.pixels[row + 1][x_right];
        const int down = crop.pixels[row + 2][x];
        const float weight_left = weights.of[abs(left - here)];
        const float weight_right = weights.of[abs(right - here)];
        const float weight_down = weights.of[abs(down - here)];
        float total = __fadd_rn(__fadd_rn(weight_up, weight_left), 1.0F);
        total = __fadd_rn(__fadd_rn(total, weight_right), weight_down);
        float sum = __fmul_rn(weight_up, static_cast<float>(up));
        sum = __fmaf_rn(weight_left, static_cast<float>(left), sum);
        sum = __fadd_rn(sum, static_cast<float>(here));
        sum = __fmaf_rn(weight_right, static_cast<float>(right), sum);
        sum = __fmaf_rn(weight_down, static_cast<float>(down), sum);
        store(row, __float2int_rn(__fdiv_rn(sum, total)));
        up = here;
        here = down;
        weight_up = weight_down;  // weights are symmetric
    }
}

}  // namespace gliofed::cuda
