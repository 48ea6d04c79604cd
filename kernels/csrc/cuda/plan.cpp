#include "plan.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "launch.h"
#include "pipeline.h"

namespace gliofed::cuda {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

void check(const ImageView& image, std::size_t i) {
    const std::string name = "image " + std::to_string(i);
    if (image.pixels == nullptr) refuse(name + " has no pixels: its device pointer is null");
    if (image.channels != 1 && image.channels != 3) {
        refuse(name + " has " + std::to_string(image.channels) + " channels, expected 1 (grey) or 3 (colour)");
    }
    if (!is_allowed_size(image.height, image.width)) {
        refuse(name + " is " + std::to_string(image.height) + "x" + std::to_string(image.width) +
               ", expected sides of 1 to 2^20 and at most 2^30 pixels");
    }
}

// Hands out the workspace from its start; each part begins where kWorkspaceAlignment allows.
class Parts {
  public:
    explicit Parts(void* workspace) : base_(reinterpret_cast<std::uintptr_t>(workspace)) {}

    template <class T>
    T* take(std::int64_t count) {
        const std::uintptr_t begin = base_ + bytes_;
        const std::size_t size = static_cast<std::size_t>(count) * sizeof(T);
        bytes_ += (size + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
        return reinterpret_cast<T*>(begin);
    }
    std::size_t bytes() const { return bytes_; }

  private:
    std::uintptr_t base_;
    std::size_t bytes_ = 0;
};

std::int64_t num_tiles(const ImageView& image) {
    const std::int64_t across = (image.width + kTileWidth - 1) / kTileWidth;
    return across * ((image.height + kTileRows - 1) / kTileRows);
}

ImageTask task_of(const ImageView& image, std::int64_t first_tile, Parts& parts) {
    ImageTask task{};
    task.pixels = image.pixels;
    task.row_stride = image.row_stride;
    task.height = static_cast<std::int32_t>(image.height);
    task.width = static_cast<std::int32_t>(image.width);
    task.channels = image.channels;
    task.order = image.order;
    task.words_per_row = (task.width + 31) / 32;
    task.first_tile = static_cast<std::int32_t>(first_tile);
    task.mask = parts.take<std::uint32_t>(image.height * task.words_per_row);
    task.nodes = parts.take<std::int32_t>(max_nodes(image.height, image.width));
    task.row_starts = parts.take<std::int32_t>(image.height + 1);
    task.components = parts.take<Component>(max_components(image.height, image.width));
    return task;
}

}  // namespace

Plan make_plan(std::span<const ImageView> images, void* workspace) {
    if (images.size() > kMaxImages) {
        refuse("batch has " + std::to_string(images.size()) + " images, expected at most " +
               std::to_string(kMaxImages) + "; cut it into smaller ones");
    }
    if (reinterpret_cast<std::uintptr_t>(workspace) % kWorkspaceAlignment != 0) {
        refuse("the workspace must begin at a multiple of " + std::to_string(kWorkspaceAlignment) + " bytes");
    }
    const auto count = static_cast<std::int64_t>(images.size());
    Parts parts(workspace);
    Plan plan{};
    plan.device_tasks = parts.take<ImageTask>(count);
    plan.crops = parts.take<std::uint8_t>(count * kCropPixels);
    std::int64_t tiles = 0;
    for (std::size_t i = 0; i < images.size(); ++i) {
        check(images[i], i);
        plan.tasks.push_back(task_of(images[i], tiles, parts));
        tiles += num_tiles(images[i]);
        if (tiles > std::numeric_limits<std::int32_t>::max()) {
            refuse("the batch has too many pixels for one call; cut it into smaller ones");
        }
    }
    plan.num_tiles = static_cast<std::int32_t>(tiles);
    plan.bytes = parts.bytes();
    return plan;
}

std::size_t workspace_bytes(std::span<const ImageView> images) { return make_plan(images, nullptr).bytes; }

void check_output_side(std::ptrdiff_t side) {
    if (side < 1 || side > kMaxOutputSide) {
        refuse("output side is " + std::to_string(side) + ", expected 1 to " + std::to_string(kMaxOutputSide));
    }
}

int band_rows(std::ptrdiff_t side) {
    // R rows reach over (R - 1) * kCropSide / side source rows, and one more at either end.
    const std::ptrdiff_t fitting = 1 + (kSourceRows - 3) * side / kCropSide;
    const std::ptrdiff_t most = std::min<std::ptrdiff_t>(kMaxBandRows, fitting);
    const std::ptrdiff_t num_bands = (side + most - 1) / most;
    return static_cast<int>((side + num_bands - 1) / num_bands);
}

}  // namespace gliofed::cuda
