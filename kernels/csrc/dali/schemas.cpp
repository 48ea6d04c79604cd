// What DALI tells Python about the operators: fn.gliofed.gray, fn.gliofed.crop and fn.gliofed.finish.

#include "dali/pipeline/operator/op_schema.h"

DALI_SCHEMA(gliofed__Gray)
    .DocStr("Decoded uint8 images [H, W, 1] or RGB [H, W, 3] to grey planes uint8 [H, W].")
    .NumInput(1)
    .InputLayout(0, {"HW", "HWC"})
    .NumOutput(1)
    .OutputDType(0, ::DALI_UINT8)
    .OutputNDim(0, 2)
    .OutputLayout(0, ::dali::TensorLayout("HW"));

DALI_SCHEMA(gliofed__Crop)
    .DocStr(R"(The head region of decoded uint8 images [H, W], [H, W, 1] or RGB [H, W, 3].

Outputs: crops, uint8 [256, 256]; boxes, int32 [4] (left, top, right, bottom) in pixels of the image, right and bottom
exclusive. Without a contour the whole image is used and its box is all zeros.)")
    .NumInput(1)
    .InputLayout(0, {"HW", "HWC"})
    .NumOutput(2)
    .OutputDType(0, ::DALI_UINT8)
    .OutputNDim(0, 2)
    .OutputLayout(0, ::dali::TensorLayout("HW"))
    .OutputDType(1, ::DALI_INT32)
    .OutputNDim(1, 1);

DALI_SCHEMA(gliofed__Finish)
    .DocStr("Crops uint8 [256, 256] to network input, float32 [3, size, size]: denoise, colour, resize, normalise.")
    .NumInput(1)
    .InputLayout(0, "HW")
    .NumOutput(1)
    .OutputDType(0, ::DALI_FLOAT)
    .OutputNDim(0, 3)
    .OutputLayout(0, ::dali::TensorLayout("CHW"))
    .AddArg("size", "Side of the output, 1 to 2048 pixels.", ::DALI_INT32)
    .AddArg("channel", "BONE channel of each output plane: 0 blue, 1 green, 2 red.", ::DALI_INT_VEC)
    .AddArg("scale", "Levels 0 to 255 are multiplied by it.", ::DALI_FLOAT)
    .AddArg("mean", "Subtracted from the scaled levels, one number a plane.", ::DALI_FLOAT_VEC)
    .AddArg("stddev", "Divides the difference, one number a plane.", ::DALI_FLOAT_VEC);
