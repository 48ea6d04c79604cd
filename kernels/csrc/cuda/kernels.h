#pragma once
// One function for each kernel; each puts it on the stream and returns. See launch.h for the order.

#include <cstdint>

#include "colour.h"
#include "launch.h"
#include "plan.h"

namespace gliofed::cuda {

// Pixels -> opened masks of all images.
void start_foreground(const ImageTask* tasks, int num_images, int num_tiles, Stream stream);

// Masks -> the box of each image's largest contour. Fills the masks' holes on the way.
void start_contour(const ImageTask* tasks, DeviceBox* boxes, int num_images, Stream stream);

// Pixels and boxes -> crops.
void start_crop(const ImageTask* tasks, const DeviceBox* boxes, std::uint8_t* crops, int num_images, Stream stream);

// Crops -> smooth crops.
void start_denoise(const std::uint8_t* crops, std::uint8_t* smooth, int num_images, Stream stream);

// Crops -> output planes: denoise unless they are smooth already, BONE, resize and normalisation in one pass.
template <class T>
void start_finish(const std::uint8_t* crops, bool denoise, const LevelTables<T>& tables, T* out, int side,
                  int num_images, Stream stream);

}  // namespace gliofed::cuda
