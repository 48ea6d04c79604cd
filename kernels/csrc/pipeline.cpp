#include "pipeline.h"

#include "dispatch.h"
#include "parallel.h"

namespace gliofed {
namespace {

GrayView gray_of(const ImageView& image, const Ops& ops, Workspace& workspace) {
    if (image.channels == 1) return {image.pixels, image.height, image.width, image.row_stride};
    std::uint8_t* gray = workspace.gray.at_least(static_cast<std::size_t>(image.height * image.width));
    ops.gray(image, gray);
    return {gray, image.height, image.width, image.width};
}

// Calls work(i, tables, planes, workspace) for every image, with where its planes lie in `out`.
template <class T, class Work>
void make_planes(std::size_t num_images, const Normalisation& normalisation, T* out, std::ptrdiff_t side,
                 int num_threads, const Work& work) {
    const LevelTables<T> tables(normalisation);
    const auto num_values = static_cast<std::size_t>(3 * side * side);
    const bool stream = num_images * num_values * sizeof(T) > kStreamedBytes;
    parallel_for<Workspace>(num_images, num_threads, [&](std::size_t i, Workspace& workspace) {
        workspace.colour.stream = stream;
        work(i, tables, out + i * num_values, workspace);
    });
}

}  // namespace

std::optional<Box> crop_image(const ImageView& image, std::uint8_t* crop, const Ops& ops, Workspace& workspace) {
    const GrayView gray = gray_of(image, ops, workspace);
    ops.foreground(gray, workspace.mask, workspace.foreground);
    std::optional<Box> box = ops.contour(workspace.mask, workspace.contour);
    if (box && box->empty()) box.reset();
    ops.resize(box ? view_of(gray, *box) : gray, crop, kCropSide, kCropSide, workspace.resize);
    return box;
}

template <class T>
void finish_crop(const std::uint8_t* crop, const LevelTables<T>& tables, T* out, std::ptrdiff_t side, const Ops& ops,
                 Workspace& workspace) {
    std::uint8_t* smooth = workspace.smooth.at_least(kCropPixels);
    ops.denoise(crop, smooth, kCropSide, workspace.denoise);
    ops.colour<T>()(smooth, kCropSide, tables, out, side, workspace.colour);
}

// Every batch takes its twins once, whatever use_isa does meanwhile: a workspace serves one ISA.

void crop_batch(std::span<const ImageView> images, std::uint8_t* crops, std::span<std::optional<Box>> boxes,
                int num_threads) {
    const Ops& twins = ops();
    parallel_for<Workspace>(images.size(), num_threads, [&](std::size_t i, Workspace& workspace) {
        boxes[i] = crop_image(images[i], crops + i * kCropPixels, twins, workspace);
    });
}

void denoise_batch(const std::uint8_t* crops, std::size_t num_crops, std::uint8_t* smooth, int num_threads) {
    const Ops& twins = ops();
    parallel_for<Workspace>(num_crops, num_threads, [&](std::size_t i, Workspace& workspace) {
        twins.denoise(crops + i * kCropPixels, smooth + i * kCropPixels, kCropSide, workspace.denoise);
    });
}

template <class T>
void colour_batch(const std::uint8_t* smooth, std::size_t num_crops, const Normalisation& normalisation, T* out,
                  std::ptrdiff_t side, int num_threads) {
    const Ops& twins = ops();
    make_planes(num_crops, normalisation, out, side, num_threads,
                [&](std::size_t i, const LevelTables<T>& tables, T* planes, Workspace& workspace) {
                    twins.colour<T>()(smooth + i * kCropPixels, kCropSide, tables, planes, side, workspace.colour);
                });
}

template <class T>
void finish_batch(const std::uint8_t* crops, std::size_t num_crops, const Normalisation& normalisation, T* out,
                  std::ptrdiff_t side, int num_threads) {
    const Ops& twins = ops();
    make_planes(num_crops, normalisation, out, side, num_threads,
                [&](std::size_t i, const LevelTables<T>& tables, T* planes, Workspace& workspace) {
                    finish_crop(crops + i * kCropPixels, tables, planes, side, twins, workspace);
                });
}

template <class T>
void preprocess_batch(std::span<const ImageView> images, const Normalisation& normalisation, T* out, bool* found,
                      std::ptrdiff_t side, int num_threads) {
    const Ops& twins = ops();
    make_planes(images.size(), normalisation, out, side, num_threads,
                [&](std::size_t i, const LevelTables<T>& tables, T* planes, Workspace& workspace) {
                    std::uint8_t* crop = workspace.crop.at_least(kCropPixels);
                    found[i] = crop_image(images[i], crop, twins, workspace).has_value();
                    finish_crop(crop, tables, planes, side, twins, workspace);
                });
}

template void finish_crop(const std::uint8_t*, const LevelTables<float>&, float*, std::ptrdiff_t, const Ops&,
                          Workspace&);
template void finish_crop(const std::uint8_t*, const LevelTables<Bfloat16>&, Bfloat16*, std::ptrdiff_t, const Ops&,
                          Workspace&);
template void colour_batch(const std::uint8_t*, std::size_t, const Normalisation&, float*, std::ptrdiff_t, int);
template void colour_batch(const std::uint8_t*, std::size_t, const Normalisation&, Bfloat16*, std::ptrdiff_t, int);
template void finish_batch(const std::uint8_t*, std::size_t, const Normalisation&, float*, std::ptrdiff_t, int);
template void finish_batch(const std::uint8_t*, std::size_t, const Normalisation&, Bfloat16*, std::ptrdiff_t, int);
template void preprocess_batch(std::span<const ImageView>, const Normalisation&, float*, bool*, std::ptrdiff_t, int);
template void preprocess_batch(std::span<const ImageView>, const Normalisation&, Bfloat16*, bool*, std::ptrdiff_t,
                               int);

}  // namespace gliofed
