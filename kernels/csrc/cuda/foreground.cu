// Blur, threshold and opening of all images, tile by tile, in one pass.
//
// Limits: device memory gives one byte a pixel (three for colour) and takes one bit. The halo of five pixels at
// each side is read from cache again: 1.4 times the tile. Arithmetic handles four pixels, then 32, at once: near two
// integer instructions a pixel. Bound by memory.

#include "foreground.h"

#include "kernels.h"
#include "pixels.cuh"
#include "start.h"

namespace gliofed::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kReach = 2;  // of one 5x5 erosion or dilation
constexpr int kErodedRows = kTileRows + 2 * kReach;
constexpr int kBitRows = kErodedRows + 2 * kReach;
constexpr int kGrayRows = kBitRows + 2;
constexpr int kWords = kTileWords + 2;           // one more at either side, of which four pixels are in use
constexpr int kQuads = kTileWidth / 4 + 4;       // groups of four pixels, two more at either side
constexpr std::uint32_t kAll = ~std::uint32_t{0};

struct Tile {
    int x;
    int y;
};

// Odd row lengths: threads that work on neighbouring rows of one column then hit different banks.
struct TileMemory {
    std::uint32_t gray[kGrayRows][kQuads + 1];
    std::uint32_t bits[kBitRows][kWords + 1];
    std::uint32_t spare[kBitRows][kWords + 1];
};

// Pixels 0 and 2, and 1 and 3, of a group of four, 16 bits each.
struct Halves {
    std::uint32_t even;
    std::uint32_t odd;
};

// The last task whose tiles begin at or before this one.
__device__ int task_of_tile(const ImageTask* tasks, int num_images, int tile) {
    int low = 0;
    int high = num_images;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        (tasks[middle].first_tile <= tile ? low : high) = middle;
    }
    return low;
}

__device__ void load_levels(const ImageTask& image, Tile tile, TileMemory& memory) {
    for (int i = static_cast<int>(threadIdx.x); i < kGrayRows * kQuads; i += kThreads) {
        const int row = i / kQuads;
        const int quad = i % kQuads;
        const int y = mirrored(tile.y - 2 * kReach - 1 + row, image.height);
        memory.gray[row][quad] = four_levels(image, row_of(image, y), tile.x - 8 + 4 * quad);
    }
}

// Weights 1 2 1 down a column, at most 1020.
__device__ Halves column_sums(const TileMemory& memory, int row, int quad) {
    constexpr std::uint32_t kHalf = 0x00FF00FFU;
    const std::uint32_t up = memory.gray[row][quad];
    const std::uint32_t here = memory.gray[row + 1][quad];
    const std::uint32_t down = memory.gray[row + 2][quad];
    return {(up & kHalf) + 2 * (here & kHalf) + (down & kHalf),
            ((up >> 8) & kHalf) + 2 * ((here >> 8) & kHalf) + ((down >> 8) & kHalf)};
}

// Bit k: pixel k of the group in the middle is foreground. Each half's top bit appears where its sum is reached.
__device__ std::uint32_t four_bits(Halves left, Halves here, Halves right) {
    constexpr std::uint32_t kCarry = (0x8000U - kSmallestForegroundSum) * 0x00010001U;
    const std::uint32_t before = (here.odd << 16) | (left.odd >> 16);
    const std::uint32_t after = (here.even >> 16) | (right.even << 16);
    const std::uint32_t even = before + 2 * here.even + here.odd + kCarry;
    const std::uint32_t odd = here.even + 2 * here.odd + after + kCarry;
    return ((even >> 15) & 1U) | ((odd >> 14) & 2U) | ((even >> 29) & 4U) | ((odd >> 28) & 8U);
}

// Bits of a word that are pixels of the image; none for a row or word beyond it.
__device__ std::uint32_t inside(const ImageTask& image, int y, int word) {
    if (y < 0 || y >= image.height || word < 0 || word >= image.words_per_row) return 0;
    const int rest = image.width - 32 * word;
    return rest >= 32 ? kAll : (1U << rest) - 1;
}

// Outside the image all bits are set, so that the erosion does not see its edge.
__device__ void threshold(const ImageTask& image, Tile tile, TileMemory& memory) {
    for (int i = static_cast<int>(threadIdx.x); i < kBitRows * kWords; i += kThreads) {
        const int row = i % kBitRows;
        const int word = i / kBitRows;
        const int first = word == 0 ? 7 : 0;
        const int last = word == kWords - 1 ? 0 : 7;
        int quad = 8 * (word - 1) + first + 2;
        Halves left = column_sums(memory, row, quad - 1);
        Halves here = column_sums(memory, row, quad);
        std::uint32_t bits = 0;
        for (int k = first; k <= last; ++k) {
            const Halves right = column_sums(memory, row, ++quad);
            bits |= four_bits(left, here, right) << (4 * k);
            left = here;
            here = right;
        }
        memory.bits[row][word] = bits | ~inside(image, tile.y - 2 * kReach + row, tile.x / 32 + word - 1);
    }
}

struct Erode {
    __device__ static std::uint32_t join(std::uint32_t a, std::uint32_t b) { return a & b; }
};

struct Dilate {
    __device__ static std::uint32_t join(std::uint32_t a, std::uint32_t b) { return a | b; }
};

// Two pixels to either side along a row. At the tile's outer words one neighbour is missing: those bits are not used.
template <class Rule>
__device__ void join_across(TileMemory& memory, int num_rows) {
    for (int i = static_cast<int>(threadIdx.x); i < num_rows * kWords; i += kThreads) {
        const int row = i % num_rows;
        const int word = i / num_rows;
        const std::uint32_t before = word > 0 ? memory.bits[row][word - 1] : 0;
        const std::uint32_t here = memory.bits[row][word];
        const std::uint32_t after = word + 1 < kWords ? memory.bits[row][word + 1] : 0;
        const std::uint32_t left = Rule::join((here << 1) | (before >> 31), (here << 2) | (before >> 30));
        const std::uint32_t right = Rule::join((here >> 1) | (after << 31), (here >> 2) | (after << 30));
        memory.spare[row][word] = Rule::join(here, Rule::join(left, right));
    }
}

template <class Rule>
__device__ std::uint32_t join_down(const TileMemory& memory, int row, int word) {
    std::uint32_t bits = memory.spare[row][word];
    for (int k = 1; k <= 2 * kReach; ++k) bits = Rule::join(bits, memory.spare[row + k][word]);
    return bits;
}

__device__ void erode_down(const ImageTask& image, Tile tile, TileMemory& memory) {
    for (int i = static_cast<int>(threadIdx.x); i < kErodedRows * kWords; i += kThreads) {
        const int row = i % kErodedRows;
        const int word = i / kErodedRows;
        const std::uint32_t image_bits = inside(image, tile.y - kReach + row, tile.x / 32 + word - 1);
        memory.bits[row][word] = join_down<Erode>(memory, row, word) & image_bits;
    }
}

__device__ void dilate_down_and_store(const ImageTask& image, Tile tile, const TileMemory& memory) {
    for (int i = static_cast<int>(threadIdx.x); i < kTileRows * kTileWords; i += kThreads) {
        const int y = tile.y + i / kTileWords;
        const int word = tile.x / 32 + i % kTileWords;
        const std::uint32_t image_bits = inside(image, y, word);
        if (image_bits == 0) continue;
        const std::uint32_t bits = join_down<Dilate>(memory, i / kTileWords, i % kTileWords + 1);
        image.mask[static_cast<std::int64_t>(y) * image.words_per_row + word] = bits & image_bits;
    }
}

__global__ void __launch_bounds__(kThreads) foreground_kernel(const ImageTask* tasks, int num_images) {
    __shared__ TileMemory memory;
    const int number = static_cast<int>(blockIdx.x);
    const ImageTask image = tasks[task_of_tile(tasks, num_images, number)];
    const int tiles_across = (image.width + kTileWidth - 1) / kTileWidth;
    const int own = number - image.first_tile;
    const Tile tile{own % tiles_across * kTileWidth, own / tiles_across * kTileRows};
    load_levels(image, tile, memory);
    __syncthreads();
    threshold(image, tile, memory);
    __syncthreads();
    join_across<Erode>(memory, kBitRows);
    __syncthreads();
    erode_down(image, tile, memory);
    __syncthreads();
    join_across<Dilate>(memory, kErodedRows);
    __syncthreads();
    dilate_down_and_store(image, tile, memory);
}

}  // namespace

void start_foreground(const ImageTask* tasks, int num_images, int num_tiles, Stream stream) {
    start("foreground", foreground_kernel, static_cast<unsigned>(num_tiles), kThreads, stream, tasks, num_images);
}

}  // namespace gliofed::cuda
