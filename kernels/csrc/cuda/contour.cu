// The box of the largest outer contour, one block an image, without following any border.
//
// Only outermost parts can win, and what lies within their outer border counts as theirs. So the background that
// does not reach the image's edge (joined through sides, as parts join through corners) is filled first. Twice the
// area of the polygon through the border pixels' centres is then a sum over all squares of 2x2 neighbours that can
// be taken in any order: two for a square that is wholly set, one for a square with three set, else nothing.
// Integers throughout: the result does not depend on the order in which threads come.
//
// Limits: the mask, one bit a pixel, is read about eight times, at 512x512 from the first-level cache; a head has
// some hundred rows of a few runs, whose nodes stay in shared memory. Bound by latency, near a hundred dependent
// steps a row; a batch of more images than the device has multiprocessors hides it.

#include <cuda_runtime.h>

#include "kernels.h"
#include "labels.cuh"
#include "start.h"

namespace gliofed::cuda {
namespace {

constexpr int kStartBits = 30;  // a start is below kMaxPixels

static_assert(kMaxPixels == std::int64_t{1} << kStartBits);

// Bits of a word that lie in columns [first, last].
__device__ std::uint32_t columns(int word, int first, int last) {
    const std::uint32_t from = first > 32 * word ? ~0U << (first - 32 * word) : ~0U;
    const std::uint32_t to = last < 32 * word + 31 ? (2U << (last - 32 * word)) - 1 : ~0U;
    return from & to;
}

__device__ void fill_holes(const Mask& mask, const Labels& background) {
    for (int y = static_cast<int>(threadIdx.x); y < mask.height; y += kLabelThreads) {
        std::uint32_t* row = mask.row(y);
        int node = background.node(y);
        for (Runs<false> run(mask, y); run.next(); ++node) {
            if (root_of(background.parents, node) == kOutside) continue;
            for (int j = run.first / 32; j <= run.last / 32; ++j) row[j] |= columns(j, run.first, run.last);
        }
    }
    __syncthreads();
}

// What a run adds to twice the area: squares below it whose upper corners are both in the run, and squares above it
// that have just one upper corner.
__device__ std::uint32_t twice_area_at(const Mask& mask, int y, int first, int last) {
    const std::uint32_t* above = mask.row(y > 0 ? y - 1 : y);
    const std::uint32_t* below = mask.row(y + 1 < mask.height ? y + 1 : y);
    std::uint32_t sum = 0;
    for (int j = first / 32; 32 * j < last; ++j) {
        const std::uint32_t pairs = columns(j, first, last - 1);
        const bool more = last / 32 > j;
        const std::uint32_t below_next = (below[j] >> 1) | (more ? below[j + 1] << 31 : 0);
        const std::uint32_t above_next = (above[j] >> 1) | (more ? above[j + 1] << 31 : 0);
        if (y + 1 < mask.height) {
            sum += static_cast<std::uint32_t>(__popc(pairs & below[j]) + __popc(pairs & below_next));
        }
        if (y > 0) sum += static_cast<std::uint32_t>(__popc(pairs & (above[j] ^ above_next)));
    }
    return sum;
}

// All threads halve all paths at once: the longest is then a few steps.
__device__ void shorten_paths(const Labels& parts, int num_nodes) {
    for (int i = static_cast<int>(threadIdx.x); i < num_nodes; i += kLabelThreads) root_of(parts.parents, i);
    __syncthreads();
}

// Numbers the parts: a root's parent becomes ~number. Numbers come in any order; nothing depends on them.
__device__ void begin_components(const Mask& mask, const Labels& parts, Component* components, int* num_components) {
    for (int y = static_cast<int>(threadIdx.x); y < mask.height; y += kLabelThreads) {
        int node = parts.node(y);
        for (Runs<true> run(mask, y); run.next(); ++node) {
            if (parts.parents[node] != node) continue;
            const int number = atomicAdd(num_components, 1);
            components[number] = {0, y * mask.width + run.first, run.first, run.last, y};
            parts.parents[node] = ~number;
        }
    }
    __syncthreads();
}

__device__ void measure_components(const Mask& mask, const Labels& parts, Component* components) {
    for (int y = static_cast<int>(threadIdx.x); y < mask.height; y += kLabelThreads) {
        int node = parts.node(y);
        for (Runs<true> run(mask, y); run.next(); ++node) {
            int parent = parts.parents[node];
            while (parent >= 0) parent = parts.parents[parent];
            Component& component = components[~parent];
            atomicAdd(&component.twice_area, twice_area_at(mask, y, run.first, run.last));
            atomicMin(&component.min_x, run.first);
            atomicMax(&component.max_x, run.last);
            atomicMax(&component.max_y, y);
        }
    }
    __syncthreads();
}

// Larger area first, then the later start; never zero.
__device__ unsigned long long rank_of(const Component& component) {
    return ((static_cast<unsigned long long>(component.twice_area) << kStartBits) |
            static_cast<unsigned long long>(component.start)) + 1;
}

__device__ void store_best_box(const Component* components, int num_components, int width, DeviceBox* box) {
    __shared__ unsigned long long best;
    const int me = static_cast<int>(threadIdx.x);
    if (me == 0) {
        best = 0;
        *box = {0, 0, 0, 0};
    }
    __syncthreads();
    for (int i = me; i < num_components; i += kLabelThreads) atomicMax(&best, rank_of(components[i]));
    __syncthreads();
    for (int i = me; i < num_components; i += kLabelThreads) {
        const Component& c = components[i];
        const DeviceBox found{c.min_x, c.start / width, c.max_x, c.max_y};
        const bool empty = found.left == found.right || found.top == found.bottom;
        if (rank_of(c) == best && !empty) *box = found;
    }
}

__global__ void __launch_bounds__(kLabelThreads) contour_kernel(const ImageTask* tasks, DeviceBox* boxes) {
    __shared__ std::int32_t near[kNearNodes];
    __shared__ int num_components;
    const ImageTask image = tasks[blockIdx.x];
    const Mask mask{image.mask, image.height, image.width, image.words_per_row};
    fill_holes(mask, label<false>(mask, image, near));
    const Labels parts = label<true>(mask, image, near);
    if (threadIdx.x == 0) num_components = 0;
    shorten_paths(parts, parts.row_starts[mask.height] + 1);
    begin_components(mask, parts, image.components, &num_components);
    measure_components(mask, parts, image.components);
    store_best_box(image.components, num_components, mask.width, boxes + blockIdx.x);
}

}  // namespace

void start_contour(const ImageTask* tasks, DeviceBox* boxes, int num_images, Stream stream) {
    start("contour", contour_kernel, static_cast<unsigned>(num_images), kLabelThreads, stream, tasks, boxes);
}

}  // namespace gliofed::cuda
