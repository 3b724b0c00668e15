// What the binding files share; only they include pybind11. Kernels take raw addresses, sizes and a thread count;
// fastmtl/ops has checked shapes, dtypes and contiguity.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>

#include "core/planes.hpp"
#include "losses/dice_score.hpp"

using Sizes = std::array<std::int64_t, 3>;  // batch, channels, pixels where no comment says otherwise

template <typename T>
inline T* pointer(std::int64_t address) {
  return reinterpret_cast<T*>(static_cast<std::uintptr_t>(address));
}

// An integer from Python where a kernel wants a pointer; 0: the tensor is absent.
struct Address {
  std::int64_t value;
  template <typename T>
  operator T*() const {
    return pointer<T>(value);
  }
};

// A binding that releases the GIL.
template <typename Function>
inline void define(pybind11::module_& m, const char* name, Function function, const char* doc) {
  m.def(name, function, pybind11::call_guard<pybind11::gil_scoped_release>(), doc);
}

inline fastmtl::LossInputs loss_inputs(const Sizes& shape, const fastmtl::Planes& logits, const fastmtl::Planes& target,
                                       const fastmtl::Planes& mask) {
  return {shape[0], shape[1], shape[2], logits, target, mask};
}

namespace pybind11::detail {

template <>
struct type_caster<Address> {
  PYBIND11_TYPE_CASTER(Address, const_name("int"));
  bool load(handle source, bool convert) {
    make_caster<std::int64_t> number;
    if (!number.load(source, convert)) return false;
    value.value = cast_op<std::int64_t>(number);
    return true;
  }
};

template <typename Enum>
struct enum_caster {
  PYBIND11_TYPE_CASTER(Enum, const_name("int"));
  bool load(handle source, bool convert) {
    make_caster<int> number;
    if (!number.load(source, convert)) return false;
    value = static_cast<Enum>(cast_op<int>(number));
    return true;
  }
};

template <>
struct type_caster<fastmtl::Element> : enum_caster<fastmtl::Element> {};
template <>
struct type_caster<fastmtl::Empty> : enum_caster<fastmtl::Empty> {};

// (address, element type, batch stride, channel stride, pixel stride), as `describe` in fastmtl/ops/core/planes.py
// makes it.
template <>
struct type_caster<fastmtl::Planes> {
  PYBIND11_TYPE_CASTER(fastmtl::Planes, const_name("tuple[int, int, int, int, int]"));
  bool load(handle source, bool convert) {
    make_caster<std::array<std::int64_t, 5>> numbers;
    if (!numbers.load(source, convert)) return false;
    const auto& view = cast_op<std::array<std::int64_t, 5>&>(numbers);
    value = {pointer<void>(view[0]), static_cast<fastmtl::Element>(view[1]), view[2], view[3], view[4]};
    return true;
  }
};

}  // namespace pybind11::detail
