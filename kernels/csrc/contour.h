#pragma once
// Op `contour`: the bounds of the outer contour that encloses the largest area.

#include <cstdint>
#include <optional>
#include <vector>

#include "bit_mask.h"
#include "buffer.h"
#include "image.h"

namespace gliofed {

// One 8-connected component; `start` is its first pixel in reading order, bounds are inclusive, `squares` counts
// the blocks of two by two pixels that are wholly its own.
struct Component {
    std::int32_t start_x;
    std::int32_t start_y;
    std::int32_t min_x;
    std::int32_t max_x;
    std::int32_t max_y;
    std::int32_t parent;
    std::int64_t squares;
};

struct ContourBuffers {
    AlignedBuffer<std::int32_t> runs;
    std::vector<Component> components;
};

// The area is that of cv::contourArea: the polygon through the centres of the outer border's pixels, holes
// filled. Equal areas: the component whose first pixel comes last in reading order wins, as it does for
// max(cv2.findContours(..., RETR_EXTERNAL, ...), key=cv2.contourArea). Right and bottom are the contour's
// extreme column and row themselves, so the half-open box leaves them out and is empty for a single pixel.
// No value when the mask has no foreground.
std::optional<Box> largest_contour_scalar(const BitMask& mask, ContourBuffers& buffers);
std::optional<Box> largest_contour_avx2(const BitMask& mask, ContourBuffers& buffers);

}  // namespace gliofed
