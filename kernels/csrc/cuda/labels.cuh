#pragma once
// Connected parts of a mask, found by the threads of one block.
//
// Nodes of the union-find are runs of equal pixels in a row, numbered in reading order, and a parent is always the
// older one: parents only ever fall, which bounds every loop, and a root is its part's first run in reading order.

#include <cuda_runtime.h>

#include <cstdint>

#include "plan.h"

namespace gliofed::cuda {

inline constexpr int kLabelThreads = 512;  // of the one block that labels a mask
inline constexpr int kNearNodes = 8192;    // in shared memory; a mask with more runs has its nodes in the workspace
inline constexpr int kOutside = 0;         // the node of all that lies beyond the image's edge

struct Mask {
    std::uint32_t* words;
    int height;
    int width;
    int words_per_row;

    __device__ std::uint32_t* row(int y) const { return words + static_cast<std::int64_t>(y) * words_per_row; }
};

// Steps through the runs of pixels that are set, or of those that are not.
template <bool kSet>
struct Runs {
    const std::uint32_t* row;
    int width;
    int first = 0;
    int last = -1;

    __device__ Runs(const Mask& mask, int y) : row(mask.row(y)), width(mask.width) {}
    __device__ bool next() {
        first = find<kSet>(last + 1);
        if (first >= width) return false;
        last = find<!kSet>(first + 1) - 1;
        return true;
    }

  private:
    template <bool kValue>
    __device__ int find(int from) const {
        const int num_words = (width + 31) / 32;
        int word = from / 32;
        if (word >= num_words) return width;
        std::uint32_t bits = (kValue ? row[word] : ~row[word]) & (~0U << (from % 32));
        while (bits == 0) {
            if (++word == num_words) return width;
            bits = kValue ? row[word] : ~row[word];
        }
        return min(32 * word + __ffs(static_cast<int>(bits)) - 1, width);
    }
};

// Volatile: other threads move parents meanwhile. An old value is an ancestor still, so it costs steps, not truth.
__device__ inline int root_of(volatile std::int32_t* parents, int node) {
    int parent = parents[node];
    while (parent != node) {
        const int grandparent = parents[parent];
        if (grandparent != parent) parents[node] = grandparent;
        node = grandparent;
        parent = parents[node];
    }
    return node;
}

__device__ inline void unite(std::int32_t* parents, int a, int b) {
    while (true) {
        a = root_of(parents, a);
        b = root_of(parents, b);
        if (a == b) return;
        const int older = min(a, b);
        const int younger = max(a, b);
        const int before = atomicMin(&parents[younger], older);
        if (before == younger) return;
        a = before;  // another thread had joined it elsewhere: that part has to follow
        b = older;
    }
}

// Turns counts[0..length) into the sums of all before them, and counts[length] into the total.
__device__ inline void sum_up(std::int32_t* counts, int length) {
    __shared__ std::int32_t sums[2][kLabelThreads];
    const int me = static_cast<int>(threadIdx.x);
    const int share = (length + kLabelThreads - 1) / kLabelThreads;
    const int begin = min(me * share, length);
    const int end = min(begin + share, length);
    std::int32_t own = 0;
    for (int i = begin; i < end; ++i) own += counts[i];
    sums[0][me] = own;
    __syncthreads();
    int now = 0;
    for (int reach = 1; reach < kLabelThreads; reach *= 2) {
        sums[1 - now][me] = sums[now][me] + (me >= reach ? sums[now][me - reach] : 0);
        now = 1 - now;
        __syncthreads();
    }
    std::int32_t sum = sums[now][me] - own;
    for (int i = begin; i < end; ++i) {
        const std::int32_t count = counts[i];
        counts[i] = sum;
        sum += count;
    }
    if (me == kLabelThreads - 1) counts[length] = sums[now][me];
    __syncthreads();
}

// Unites the runs of row y with those of the row above that they touch: set ones also across corners.
template <bool kSet>
__device__ void unite_with_row_above(const Mask& mask, int y, int node_above, int node, std::int32_t* parents) {
    constexpr int kReach = kSet ? 1 : 0;
    Runs<kSet> above(mask, y - 1);
    Runs<kSet> here(mask, y);
    bool more = above.next() && here.next();
    while (more) {
        const bool touch = above.first <= here.last + kReach && here.first <= above.last + kReach;
        if (touch) unite(parents, node_above, node);
        if (above.last < here.last) {
            more = above.next();
            ++node_above;
        } else {
            more = here.next();
            ++node;
        }
    }
}

__device__ inline void unite_with_outside(const Mask& mask, int y, int node, std::int32_t* parents) {
    const bool edge_row = y == 0 || y == mask.height - 1;
    for (Runs<false> run(mask, y); run.next(); ++node) {
        if (edge_row || run.first == 0 || run.last == mask.width - 1) unite(parents, kOutside, node);
    }
}

struct Labels {
    std::int32_t* parents;           // of node 0, the outside, and of all runs from node 1
    const std::int32_t* row_starts;  // runs in the rows above

    __device__ int node(int y) const { return row_starts[y] + 1; }
};

// Joins runs into parts. `near` has kNearNodes in shared memory.
template <bool kSet>
__device__ Labels label(const Mask& mask, const ImageTask& image, std::int32_t* near) {
    const int me = static_cast<int>(threadIdx.x);
    for (int y = me; y < mask.height; y += kLabelThreads) {
        std::int32_t count = 0;
        for (Runs<kSet> run(mask, y); run.next();) ++count;
        image.row_starts[y] = count;
    }
    __syncthreads();
    sum_up(image.row_starts, mask.height);
    const int num_nodes = image.row_starts[mask.height] + 1;
    const Labels labels{num_nodes <= kNearNodes ? near : image.nodes, image.row_starts};
    for (int i = me; i < num_nodes; i += kLabelThreads) labels.parents[i] = i;
    __syncthreads();
    for (int y = me; y < mask.height; y += kLabelThreads) {
        if (!kSet) unite_with_outside(mask, y, labels.node(y), labels.parents);
        if (y > 0) unite_with_row_above<kSet>(mask, y, labels.node(y - 1), labels.node(y), labels.parents);
    }
    __syncthreads();
    return labels;
}

}  // namespace gliofed::cuda
