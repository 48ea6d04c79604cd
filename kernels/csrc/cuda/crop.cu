// The box of each image, or the whole of it, resized to 256x256.
//
// Limits: device memory gives at most the box's pixels, which the foreground pass has often left in cache, and takes
// 64 KiB. Four loads and some 30 integer instructions a pixel of the crop. Bound by latency of the loads.

#include <cuda_runtime.h>

#include "axis.cuh"
#include "kernels.h"
#include "pipeline.h"
#include "pixels.cuh"
#include "start.h"

namespace gliofed::cuda {
namespace {

constexpr int kSide = static_cast<int>(kCropSide);
constexpr int kRows = 16;  // of the crop, for one block of one thread a column
constexpr int kBlocksPerImage = kSide / kRows;

__global__ void __launch_bounds__(kSide) crop_kernel(const ImageTask* tasks, const DeviceBox* boxes,
                                                     std::uint8_t* crops) {
    __shared__ AxisEntry rows[kRows];
    const int number = static_cast<int>(blockIdx.x) / kBlocksPerImage;
    const int first_row = static_cast<int>(blockIdx.x) % kBlocksPerImage * kRows;
    const int x = static_cast<int>(threadIdx.x);
    const ImageTask image = tasks[number];
    DeviceBox box = boxes[number];
    if (box.right == box.left) box = {0, 0, image.width, image.height};
    const int height = box.bottom - box.top;
    const int width = box.right - box.left;
    if (x < kRows) rows[x] = axis_entry(first_row + x, height, kSide, EdgeRule::kClampIndex);
    const AxisEntry column = axis_entry(x, width, kSide, EdgeRule::kClampWeight);
    __syncthreads();
    std::uint8_t* out = crops + static_cast<std::int64_t>(number) * kCropPixels + first_row * kSide + x;
    for (int k = 0; k < kRows; ++k) {
        const std::uint8_t* lower = row_of(image, box.top + rows[k].lower);
        const std::uint8_t* upper = row_of(image, box.top + rows[k].upper);
        const int left = box.left + column.lower;
        const int right = box.left + column.upper;
        const Corners p{level_at(image, lower, left), level_at(image, lower, right), level_at(image, upper, left),
                        level_at(image, upper, right)};
        out[k * kSide] = static_cast<std::uint8_t>(blend(p, column, rows[k]));
    }
}

}  // namespace

void start_crop(const ImageTask* tasks, const DeviceBox* boxes, std::uint8_t* crops, int num_images, Stream stream) {
    const auto num_blocks = static_cast<unsigned>(num_images) * kBlocksPerImage;
    start("crop", crop_kernel, num_blocks, kSide, stream, tasks, boxes, crops);
}

}  // namespace gliofed::cuda
