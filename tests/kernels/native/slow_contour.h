#pragma once
// A second, slow definition of the largest contour that shares nothing with the first: flood fills, no border walk.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "bit_mask.h"
#include "image.h"

namespace gliofed::fuzz {

class SlowContour {
  public:
    explicit SlowContour(const BitMask& mask)
        : mask_(mask), owner_(static_cast<std::size_t>((mask.height + 2) * (mask.width + 2))) {}

    // As gliofed::largest_contour.
    std::optional<Box> largest() {
        std::int64_t most = -1;
        std::optional<Box> best;
        for (std::ptrdiff_t y = 0; y < mask_.height; ++y) {
            for (std::ptrdiff_t x = 0; x < mask_.width; ++x) {
                if (!mask_.at(x, y) || owner(x, y) != 0) continue;
                const Box box = take_component(x, y);
                const std::int64_t area = twice_area(box);
                if (area >= most) best = box;
                most = std::max(most, area);
            }
        }
        return best;
    }

  private:
    std::int32_t& owner(std::ptrdiff_t x, std::ptrdiff_t y) {
        return owner_[static_cast<std::size_t>((y + 1) * (mask_.width + 2) + x + 1)];
    }

    // Marks what hangs together with (x, y), also over corners.
    Box take_component(std::ptrdiff_t x, std::ptrdiff_t y) {
        Box box{x, y, x, y};
        owner(x, y) = ++num_components_;
        std::vector<std::pair<std::ptrdiff_t, std::ptrdiff_t>> open{{x, y}};
        while (!open.empty()) {
            const auto [px, py] = open.back();
            open.pop_back();
            box = {std::min(box.left, px), std::min(box.top, py), std::max(box.right, px), std::max(box.bottom, py)};
            for (std::ptrdiff_t k = 0; k < 9; ++k) {
                const std::ptrdiff_t nx = px + k % 3 - 1;
                const std::ptrdiff_t ny = py + k / 3 - 1;
                if (!mask_.at(nx, ny) || owner(nx, ny) != 0) continue;
                owner(nx, ny) = num_components_;
                open.emplace_back(nx, ny);
            }
        }
        return box;
    }

    // The polygon through the border's pixel centres takes in a block of two by two pixels wholly when all four
    // belong to the filled component, and half of it when three do.
    std::int64_t twice_area(const Box& box) {
        const std::ptrdiff_t width = box.right - box.left + 3;
        const std::vector<char> outside = flood_outside(box, width);
        std::int64_t area = 0;
        for (std::ptrdiff_t y = 1; y <= box.bottom - box.top; ++y) {
            for (std::ptrdiff_t x = 1; x <= box.right - box.left; ++x) {
                const auto i = static_cast<std::size_t>(y * width + x);
                const auto below = i + static_cast<std::size_t>(width);
                const int num_outside = outside[i] + outside[i + 1] + outside[below] + outside[below + 1];
                area += std::max(0, 2 - num_outside);
            }
        }
        return area;
    }

    // 1 for each pixel of the box, widened by one, from which a path over edges leads out of it past the component.
    std::vector<char> flood_outside(const Box& box, std::ptrdiff_t width) {
        const std::ptrdiff_t height = box.bottom - box.top + 3;
        std::vector<char> outside(static_cast<std::size_t>(width * height));
        std::vector<std::ptrdiff_t> open{0};
        outside[0] = 1;
        while (!open.empty()) {
            const std::ptrdiff_t x = open.back() % width;
            const std::ptrdiff_t y = open.back() / width;
            open.pop_back();
            for (const auto& [nx, ny] : {std::pair{x + 1, y}, {x - 1, y}, {x, y + 1}, {x, y - 1}}) {
                if (nx < 0 || ny < 0 || nx >= width || ny >= height) continue;
                if (owner(nx + box.left - 1, ny + box.top - 1) == num_components_) continue;
                char& seen = outside[static_cast<std::size_t>(ny * width + nx)];
                if (seen == 0) open.push_back(ny * width + nx);
                seen = 1;
            }
        }
        return outside;
    }

    const BitMask& mask_;
    std::vector<std::int32_t> owner_;
    std::int32_t num_components_ = 0;
};

}  // namespace gliofed::fuzz
