#include "contour.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <utility>

namespace gliofed {
namespace {

// The runs of one row: pixels [bounds[2i], bounds[2i + 1]) are foreground and of components[i].
struct Runs {
    std::int32_t* bounds;
    std::int32_t* components;
    std::ptrdiff_t count;

    std::int32_t first(std::ptrdiff_t i) const { return bounds[2 * i]; }
    std::int32_t end(std::ptrdiff_t i) const { return bounds[2 * i + 1]; }
};

// A run's bounds are where pixels differ from the one before them. Four a word are written at once, needed or not:
// rows differ too much for branches to be foreseen, so `bounds` needs room for three more than a row can have.
std::ptrdiff_t find_bounds(const BitMask& mask, std::ptrdiff_t y, std::int32_t* bounds) {
    const std::uint64_t* row = mask.row(y);
    std::uint64_t last_pixel = 0;
    std::ptrdiff_t total = 0;
    for (std::ptrdiff_t j = 0; j < mask.words_per_row; ++j) {
        const std::uint64_t word = row[j];
        std::uint64_t bits = word ^ ((word << 1) | last_pixel);
        last_pixel = word >> 63;
        if (bits == 0) continue;
        const int count = std::popcount(bits);
        for (int done = 0; done < count; done += 4) {
            for (int i = 0; i < 4; ++i) {
                bounds[total + done + i] = static_cast<std::int32_t>(64 * j) + std::countr_zero(bits);
                bits &= bits - 1;
            }
        }
        total += count;
    }
    if (last_pixel != 0) bounds[total++] = static_cast<std::int32_t>(mask.width);
    return total;
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
    into.squares += from.squares;
    from.parent = older;
    return older;
}

// Blocks of two by two pixels that run i and run k of the row above share.
std::int64_t shared_squares(const Runs& here, std::ptrdiff_t i, const Runs& above, std::ptrdiff_t k) {
    return std::max(0, std::min(here.end(i), above.end(k)) - std::max(here.first(i), above.first(k)) - 1);
}

// Gives the runs of row y their components, which those of the row above touch also at corners.
void join_row(std::int32_t y, const Runs& here, const Runs& above, std::vector<Component>& components) {
    std::ptrdiff_t k = 0;
    for (std::ptrdiff_t i = 0; i < here.count; ++i) {
        const std::int32_t first = here.first(i);
        const std::int32_t end = here.end(i);
        while (k < above.count && above.end(k) < first) ++k;
        if (k == above.count || above.first(k) > end) {
            here.components[i] = static_cast<std::int32_t>(components.size());
            components.push_back({first, y, first, end - 1, y, here.components[i], 0});
            continue;
        }
        std::int32_t component = root_of(components, above.components[k]);
        std::int64_t squares = shared_squares(here, i, above, k);
        for (std::ptrdiff_t j = k + 1; j < above.count && above.first(j) <= end; ++j) {
            component = merge(components, component, root_of(components, above.components[j]));
            squares += shared_squares(here, i, above, j);
        }
        here.components[i] = component;
        Component& c = components[static_cast<std::size_t>(component)];
        c.min_x = std::min(c.min_x, first);
        c.max_x = std::max(c.max_x, end - 1);
        c.max_y = y;
        c.squares += squares;
    }
}

void find_components(const BitMask& mask, ContourBuffers& buffers) {
    buffers.components.clear();
    const std::ptrdiff_t most_bounds = mask.width + 1 + 3;
    std::int32_t* memory = buffers.runs.at_least(static_cast<std::size_t>(3 * most_bounds));
    Runs here{memory, memory + 2 * most_bounds, 0};
    Runs above{memory + most_bounds, memory + 2 * most_bounds + most_bounds / 2, 0};
    for (std::ptrdiff_t y = 0; y < mask.height; ++y) {
        here.count = find_bounds(mask, y, here.bounds) / 2;
        join_row(static_cast<std::int32_t>(y), here, above, buffers.components);
        std::swap(here, above);
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

// No contour encloses more than the rectangle through its extreme pixels' centres ...
std::int64_t most_twice_area(const Component& c) {
    return std::int64_t{2} * (c.max_x - c.min_x) * (c.max_y - c.start_y);
}

// ... nor less than the unit squares whose four corners are all its own.
std::int64_t least_twice_area(const Component& c) { return 2 * c.squares; }

Box box_of(const Component& c) { return {c.min_x, c.start_y, c.max_x, c.max_y}; }

// The component that no other can reach, which spares the walk along borders; a head on black always is one.
const Component* undisputed(const std::vector<Component>& components, std::int64_t least) {
    const Component* only = nullptr;
    for (std::size_t i = 0; i < components.size(); ++i) {
        const Component& c = components[i];
        if (c.parent != static_cast<std::int32_t>(i) || most_twice_area(c) < least) continue;
        if (only != nullptr) return nullptr;
        only = &c;
    }
    return only;
}

std::optional<Box> find_largest(const BitMask& mask, ContourBuffers& buffers) {
    find_components(mask, buffers);
    const auto& components = buffers.components;
    std::int64_t least = 0;
    for (std::size_t i = 0; i < components.size(); ++i) {
        if (components[i].parent != static_cast<std::int32_t>(i)) continue;
        least = std::max(least, least_twice_area(components[i]));
    }
    if (const Component* only = undisputed(components, least)) return box_of(*only);
    std::int64_t best_area = -1;
    std::optional<Box> best;
    for (std::size_t i = components.size(); i-- > 0;) {
        const Component& c = components[i];
        if (c.parent != static_cast<std::int32_t>(i) || most_twice_area(c) < least) continue;
        if (most_twice_area(c) <= best_area) continue;  // cannot be strictly larger
        const std::int64_t area = twice_area_inside(mask, c.start_x, c.start_y);
        if (area <= best_area) continue;
        best_area = area;
        best = box_of(c);
    }
    return best;
}

}  // namespace

std::optional<Box> largest_contour_scalar(const BitMask& mask, ContourBuffers& buffers) {
    return find_largest(mask, buffers);
}

// The same code, compiled whole for CPUs that count bits and find the lowest one in an instruction each.
__attribute__((target("popcnt,bmi,bmi2"), flatten)) std::optional<Box> largest_contour_avx2(
    const BitMask& mask, ContourBuffers& buffers) {
    return find_largest(mask, buffers);
}

}  // namespace gliofed
