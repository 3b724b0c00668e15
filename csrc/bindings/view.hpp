// What the files named bindings*.cpp share; only they include pybind11. Every kernel takes raw addresses, sizes and a
// thread count and releases the GIL; shapes, dtypes and contiguity were checked in Python (fastmtl/ops).
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>

#include "core/planes.hpp"

void bind_balance(pybind11::module_& m);
void bind_sigmoid_losses(pybind11::module_& m);
void bind_softmax_losses(pybind11::module_& m);
void bind_other_losses(pybind11::module_& m);
void bind_deep_supervision(pybind11::module_& m);
void bind_queries(pybind11::module_& m);
void bind_stain(pybind11::module_& m);

template <typename T>
inline T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// (address, element type, batch stride, channel stride, pixel stride), as `_planes.describe` in fastmtl/ops makes it.
using View = std::array<std::int64_t, 5>;

inline fastmtl::Planes planes(const View& view) {
  return {pointer<void>(static_cast<std::uintptr_t>(view[0])), static_cast<fastmtl::Element>(view[1]), view[2], view[3],
          view[4]};
}

// shape: batch, channels, pixels.
inline fastmtl::LossInputs loss_inputs(const std::array<std::int64_t, 3>& shape, const View& logits, const View& target,
                                const View& mask) {
  return {shape[0], shape[1], shape[2], planes(logits), planes(target), planes(mask)};
}
