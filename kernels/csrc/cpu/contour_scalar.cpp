#include "contour.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>

namespace gliofed {
namespace {

// First x >= from whose pixel equals `value`, or the row's padded end.
std::ptrdiff_t next_pixel(const std::uint64_t* row, std::ptrdiff_t num_words, std::ptrdiff_t from, bool value) {
    std::ptrdiff_t j = from >> 6;
    if (j >= num_words) return num_words * 64;
    const std::uint64_t flip = value ? 0 : ~std::uint64_t{0};
    std::uint64_t word = (row[j] ^ flip) & (~std::uint64_t{0} << (from & 63));
    while (word == 0) {
        if (++j == num_words) return num_words * 64;
        word = row[j] ^ flip;
    }
    return j * 64 + std::countr_zero(word);
}

void runs_of_row(const BitMask& mask, std::ptrdiff_t y, std::vector<Run>& runs) {
    runs.clear();
    const std::uint64_t* row = mask.row(y);
    std::ptrdiff_t x = next_pixel(row, mask.words_per_row, 0, true);
    while (x < mask.width) {
        const std::ptrdiff_t end = std::min(next_pixel(row, mask.words_per_row, x, false), mask.width);
        runs.push_back({static_cast<std::int32_t>(x), static_cast<std::int32_t>(end - 1), -1});
        x = next_pixel(row, mask.words_per_row, end, true);
    }
}

std::int32_t root_of(std::vector<Component>& components, std::int32_t i) {
    while (components[static_cast<std::size_t>(i)].parent != i) {
        Component& c = components[static_cast<std::size_t>(i)];
        c.parent = components[static_cast<std::size_t>(c.parent)].parent;
        i = c.parent;
    }
    return i;
}

// The older component stays the root, so a root's start is always the first pixel in reading order.
std::int32_t merge(std::vector<Component>& components, std::int32_t a, std::int32_t b) {
    if (a == b) return a;
    const std::int32_t older = std::min(a, b);
    Component& into = components[static_cast<std::size_t>(older)];
    Component& from = components[static_cast<std::size_t>(std::max(a, b))];
    into.min_x = std::min(into.min_x, from.min_x);
    into.max_x = std::max(into.max_x, from.max_x);
    into.max_y = std::max(into.max_y, from.max_y);
    from.parent = older;
    return older;
}

void join_row(std::int32_t y, ContourBuffers& buffers) {
    auto& components = buffers.components;
    const auto& above = buffers.runs_above;
    std::size_t k = 0;
    for (Run& run : buffers.runs_here) {
        while (k < above.size() && above[k].last < run.first - 1) ++k;
        for (std::size_t j = k; j < above.size() && above[j].first <= run.last + 1; ++j) {
            const std::int32_t touched = root_of(components, above[j].component);
            run.component = run.component < 0 ? touched : merge(components, run.component, touched);
        }
        if (run.component < 0) {
            run.component = static_cast<std::int32_t>(components.size());
            components.push_back({run.first, y, run.first, run.last, y, run.component});
            continue;
        }
        Component& c = components[static_cast<std::size_t>(run.component)];
        c.min_x = std::min(c.min_x, run.first);
        c.max_x = std::max(c.max_x, run.last);
        c.max_y = y;
    }
}

void find_components(const BitMask& mask, ContourBuffers& buffers) {
    buffers.components.clear();
    buffers.runs_above.clear();
    for (std::ptrdiff_t y = 0; y < mask.height; ++y) {
        runs_of_row(mask, y, buffers.runs_here);
        join_row(static_cast<std::int32_t>(y), buffers);
        std::swap(buffers.runs_above, buffers.runs_here);
    }
}

// Neighbours counter-clockwise from the east, y pointing down.
constexpr std::array<std::int32_t, 8> kDx{1, 1, 0, -1, -1, -1, 0, 1};
constexpr std::array<std::int32_t, 8> kDy{0, -1, -1, -1, 0, 1, 1, 1};
constexpr unsigned kWest = 4;

// Twice the area inside the outer border, followed as Suzuki and Abe (1985) do, summed by the shoelace rule.
std::int64_t twice_area_inside(const BitMask& mask, std::int32_t start_x, std::int32_t start_y) {
    const auto set = [&](std::int32_t x, std::int32_t y, unsigned k) { return mask.at(x + kDx[k], y + kDy[k]); };
    unsigned first = kWest;
    do {
        first = (first - 1) & 7;
    } while (first != kWest && !set(start_x, start_y, first));
    if (first == kWest) return 0;  // a single pixel

    const std::int32_t last_x = start_x + kDx[first];
    const std::int32_t last_y = start_y + kDy[first];
    std::int32_t x = start_x;
    std::int32_t y = start_y;
    unsigned from = first;
    std::int64_t sum = 0;
    while (true) {
        unsigned k = from;
        do {
            k = (k + 1) & 7;
        } while (!set(x, y, k));
        const std::int32_t next_x = x + kDx[k];
        const std::int32_t next_y = y + kDy[k];
        sum += std::int64_t{x} * next_y - std::int64_t{next_x} * y;
        if (next_x == start_x && next_y == start_y && x == last_x && y == last_y) return std::abs(sum);
        x = next_x;
        y = next_y;
        from = (k + 4) & 7;
    }
}

}  // namespace

std::optional<Box> largest_contour_scalar(const BitMask& mask, ContourBuffers& buffers) {
    find_components(mask, buffers);
    const auto& components = buffers.components;
    std::int64_t best_area = -1;
    std::optional<Box> best;
    for (std::size_t i = components.size(); i-- > 0;) {
        const Component& c = components[i];
        if (c.parent != static_cast<std::int32_t>(i)) continue;
        const std::int64_t bound = std::int64_t{2} * (c.max_x - c.min_x) * (c.max_y - c.start_y);
        if (bound <= best_area) continue;  // cannot be strictly larger: spare the walk along its border
        const std::int64_t area = twice_area_inside(mask, c.start_x, c.start_y);
        if (area <= best_area) continue;
        best_area = area;
        best = Box{c.min_x, c.start_y, c.max_x, c.max_y};
    }
    return best;
}

}  // namespace gliofed
