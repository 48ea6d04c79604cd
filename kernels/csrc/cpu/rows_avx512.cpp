#include <algorithm>

#include "cpu/avx512_rows.h"

namespace gliofed::avx512 {
namespace {

// With weights 2048 - w and w the interpolation (a * (2048 - w) + b * w) >> 4 is, exactly,
//   64 * (a + b) + ((128 * (b - a) * (32 * (w - 1024))) >> 16),
// and every part of it fits 16 bits, unless w is 2048 itself, to which fractions just below one are rounded. Each
// weight is rounded by itself, so sums of 2047 or 2049 are conceivable too. Such axes go the scalar way.
bool exact_in_16_bits(const LinearAxis& axis) {
    for (std::size_t i = 0; i < axis.weight_lower.size(); ++i) {
        if (axis.weight_lower[i] + axis.weight_upper[i] != 2048 || axis.weight_upper[i] == 2048) return false;
    }
    return true;
}

}  // namespace

void plan_row(const LinearAxis& axis, RowPlan& plan) {
    const auto length = static_cast<std::ptrdiff_t>(axis.index_lower.size());
    plan.num_groups = (length + kGroup - 1) / kGroup;
    const auto num_slots = static_cast<std::size_t>(plan.num_groups * kGroup);
    std::int32_t* bases = plan.bases.at_least(static_cast<std::size_t>(plan.num_groups));
    std::uint8_t* indices = plan.indices.at_least(2 * num_slots);
    std::int16_t* weights = plan.weights.at_least(num_slots);
    std::int32_t furthest = 0;
    for (std::ptrdiff_t group = 0; group < plan.num_groups; ++group) {
        // A group's first output reads furthest to the left.
        const std::int32_t base = axis.index_lower[static_cast<std::size_t>(group * kGroup)];
        bases[group] = base;
        for (std::ptrdiff_t at = group * kGroup; at < (group + 1) * kGroup; ++at) {
            const auto i = static_cast<std::size_t>(std::min(at, length - 1));
            furthest = std::max(furthest, axis.index_upper[i] - base);
            indices[2 * at] = static_cast<std::uint8_t>(axis.index_lower[i] - base);
            indices[2 * at + 1] = static_cast<std::uint8_t>(axis.index_upper[i] - base);
            weights[at] = static_cast<std::int16_t>((axis.weight_upper[i] - 1024) * 32);
        }
    }
    plan.window = !exact_in_16_bits(axis) || furthest > 127 ? 0 : furthest > 63 ? 128 : 64;
}

}  // namespace gliofed::avx512
