#include "pipeline.h"

#include "parallel.h"

namespace gliofed {

std::optional<Box> crop_image(const GrayView& image, std::uint8_t* crop, Workspace& workspace) {
    foreground_scalar(image, workspace.mask, workspace.foreground);
    std::optional<Box> box = largest_contour_scalar(workspace.mask, workspace.contour);
    if (box && box->empty()) box.reset();
    const GrayView source = box ? view_of(image, *box) : image;
    resize_scalar(source, crop, kCropSide, kCropSide, workspace.resize);
    return box;
}

void finish_crop(const std::uint8_t* crop, const Normalisation& normalisation, float* out, std::ptrdiff_t side,
                 Workspace& workspace) {
    workspace.smooth.resize(kCropPixels);
    denoise_scalar(crop, workspace.smooth.data(), kCropSide, workspace.denoise);
    colour_scalar(workspace.smooth.data(), kCropSide, normalisation, out, side, workspace.colour);
}

void finish_batch(std::span<const std::uint8_t* const> crops, const Normalisation& normalisation, float* out,
                  std::ptrdiff_t side, int num_threads) {
    parallel_for<Workspace>(crops.size(), num_threads, [&](std::size_t i, Workspace& workspace) {
        finish_crop(crops[i], normalisation, out + static_cast<std::ptrdiff_t>(i) * 3 * side * side, side, workspace);
    });
}

void preprocess_batch(std::span<const GrayView> images, const Normalisation& normalisation, float* out, bool* found,
                      std::ptrdiff_t side, int num_threads) {
    parallel_for<Workspace>(images.size(), num_threads, [&](std::size_t i, Workspace& workspace) {
        workspace.crop.resize(kCropPixels);
        found[i] = crop_image(images[i], workspace.crop.data(), workspace).has_value();
        float* planes = out + static_cast<std::ptrdiff_t>(i) * 3 * side * side;
        finish_crop(workspace.crop.data(), normalisation, planes, side, workspace);
    });
}

}  // namespace gliofed
