// What follows the crop: denoise, BONE, resize and normalisation in one pass, and the two halves of it for crops that
// are kept denoised. One block makes a band of output rows.
//
// Limits, for float32 and side S: device memory gives 64 KiB and takes 12 * S * S bytes an image (0.5 MB at 200).
// Some 60 instructions a pixel of the crop, four weights looked up and a division among them, made 1.1 to 1.4 times
// because bands overlap, and as many for each output pixel: near 200,000 warp instructions an image at 200, about as
// long as its bytes take. Normalised values come from a table of all 256 levels, so no arithmetic follows the resize.

#include <cuda_runtime.h>

#include <algorithm>

#include "axis.cuh"
#include "denoise.cuh"
#include "kernels.h"
#include "start.h"

namespace gliofed::cuda {
namespace {

// Travels as a kernel argument; the three planes' BONE levels share a word, the first in the lowest byte.
template <class T>
struct Tables {
    NeighbourWeights weights;
    std::uint32_t bone[kLevels];
    T value[3][kLevels];
};

template <class T>
struct BandMemory {
    Tables<T> tables;
    AxisEntry rows[kMaxBandRows];
    StagedCrop crop;
    std::uint32_t mapped[kSourceRows][kSide];
};

struct Band {
    int first_row;
    int num_rows;
};

template <class T>
__device__ void load_tables(const Tables<T>& from, Tables<T>& to) {
    const int i = static_cast<int>(threadIdx.x);
    to.weights.of[i] = from.weights.of[i];
    to.bone[i] = from.bone[i];
    for (int c = 0; c < 3; ++c) to.value[c][i] = from.value[c][i];
}

// One column of the band, through BONE.
template <bool kDenoise, class T>
__device__ void map_column(int num_rows, BandMemory<T>& memory) {
    const int x = static_cast<int>(threadIdx.x);
    const auto store = [&](int row, int level) { memory.mapped[row][x] = memory.tables.bone[level]; };
    if constexpr (kDenoise) {
        denoise_column(memory.crop, memory.tables.weights, num_rows, store);
    } else {
        for (int row = 0; row < num_rows; ++row) store(row, memory.crop.pixels[row + 1][x]);
    }
}

template <class T>
__device__ void resize_and_store(Band band, int first, int side, const BandMemory<T>& memory, T* out) {
    const std::int64_t plane = static_cast<std::int64_t>(side) * side;
    for (int x = static_cast<int>(threadIdx.x); x < side; x += kSide) {
        const AxisEntry column = axis_entry(x, kSide, side, EdgeRule::kClampWeight);
        for (int k = 0; k < band.num_rows; ++k) {
            const AxisEntry row = memory.rows[k];
            const std::uint32_t* lower = memory.mapped[row.lower - first];
            const std::uint32_t* upper = memory.mapped[row.upper - first];
            const std::uint32_t words[4] = {lower[column.lower], lower[column.upper], upper[column.lower],
                                            upper[column.upper]};
            T* pixel = out + static_cast<std::int64_t>(band.first_row + k) * side + x;
            for (int c = 0; c < 3; ++c) {
                const auto level = [&](int i) { return static_cast<int>((words[i] >> (8 * c)) & 255U); };
                const Corners p{level(0), level(1), level(2), level(3)};
                pixel[c * plane] = memory.tables.value[c][blend(p, column, row)];
            }
        }
    }
}

template <bool kDenoise, class T>
__global__ void __launch_bounds__(kSide) finish_kernel(const __grid_constant__ Tables<T> tables,
                                                       const std::uint8_t* crops, T* out, int side, int band_rows,
                                                       int num_bands) {
    __shared__ BandMemory<T> memory;
    const int number = static_cast<int>(blockIdx.x) / num_bands;
    Band band{static_cast<int>(blockIdx.x) % num_bands * band_rows, band_rows};
    band.num_rows = min(band_rows, side - band.first_row);
    const int me = static_cast<int>(threadIdx.x);
    if (me < band.num_rows) memory.rows[me] = axis_entry(band.first_row + me, kSide, side, EdgeRule::kClampIndex);
    load_tables(tables, memory.tables);
    __syncthreads();
    const int first = memory.rows[0].lower;
    const int num_source_rows = memory.rows[band.num_rows - 1].upper - first + 1;
    load_crop(crops + static_cast<std::int64_t>(number) * kCropPixels, first, num_source_rows, memory.crop);
    __syncthreads();
    map_column<kDenoise>(num_source_rows, memory);
    __syncthreads();
    resize_and_store(band, first, side, memory, out + static_cast<std::int64_t>(number) * 3 * side * side);
}

constexpr int kDenoisedRows = kSourceRows / 3 * 2;  // of one block of denoise_kernel; divides the crop's height

__global__ void __launch_bounds__(kSide) denoise_kernel(const __grid_constant__ NeighbourWeights table,
                                                        const std::uint8_t* crops, std::uint8_t* smooth) {
    __shared__ NeighbourWeights weights;
    __shared__ StagedCrop crop;
    constexpr int kBlocksPerCrop = kSide / kDenoisedRows;
    const int first = static_cast<int>(blockIdx.x) % kBlocksPerCrop * kDenoisedRows;
    const std::int64_t offset = static_cast<std::int64_t>(blockIdx.x / kBlocksPerCrop) * kCropPixels;
    weights.of[threadIdx.x] = table.of[threadIdx.x];
    load_crop(crops + offset, first, kDenoisedRows, crop);
    __syncthreads();
    std::uint8_t* out = smooth + offset + first * kSide + static_cast<int>(threadIdx.x);
    denoise_column(crop, weights, kDenoisedRows,
                   [&](int row, int level) { out[row * kSide] = static_cast<std::uint8_t>(level); });
}

NeighbourWeights neighbour_weights() {
    NeighbourWeights weights{};
    std::copy(kNeighbourWeights.begin(), kNeighbourWeights.end(), weights.of);
    return weights;
}

template <class T>
Tables<T> pack(const LevelTables<T>& levels) {
    Tables<T> tables{};
    tables.weights = neighbour_weights();
    for (std::size_t i = 0; i < kLevels; ++i) {
        for (std::size_t c = 0; c < 3; ++c) {
            tables.bone[i] |= std::uint32_t{levels.bone[c][i]} << (8 * c);
            tables.value[c][i] = levels.value[c][i];
        }
    }
    return tables;
}

}  // namespace

void start_denoise(const std::uint8_t* crops, std::uint8_t* smooth, int num_images, Stream stream) {
    static_assert(kSide % kDenoisedRows == 0);
    const auto num_blocks = static_cast<unsigned>(num_images) * (kSide / kDenoisedRows);
    start("denoise", denoise_kernel, num_blocks, kSide, stream, neighbour_weights(), crops, smooth);
}

template <class T>
void start_finish(const std::uint8_t* crops, bool denoise, const LevelTables<T>& levels, T* out, int side,
                  int num_images, Stream stream) {
    const int rows = band_rows(side);
    const int num_bands = (side + rows - 1) / rows;
    const auto num_blocks = static_cast<unsigned>(num_images) * static_cast<unsigned>(num_bands);
    const auto kernel = denoise ? finish_kernel<true, T> : finish_kernel<false, T>;
    start("finish", kernel, num_blocks, kSide, stream, pack(levels), crops, out, side, rows, num_bands);
}

template void start_finish(const std::uint8_t*, bool, const LevelTables<float>&, float*, int, int, Stream);
template void start_finish(const std::uint8_t*, bool, const LevelTables<Bfloat16>&, Bfloat16*, int, int, Stream);

}  // namespace gliofed::cuda
