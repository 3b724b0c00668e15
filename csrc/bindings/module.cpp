// The module `fastmtl._C`. Each family of ops has its bindings in a file of this folder.
#include "bindings/view.hpp"

#include "core/isa.hpp"

void bind_gradients(pybind11::module_& m);
void bind_sigmoid_losses(pybind11::module_& m);
void bind_softmax_losses(pybind11::module_& m);
void bind_other_losses(pybind11::module_& m);
void bind_deep_supervision(pybind11::module_& m);
void bind_loading(pybind11::module_& m);
void bind_matching(pybind11::module_& m);
void bind_stain(pybind11::module_& m);

PYBIND11_MODULE(_C, m) {
  m.doc() = "fastmtl's compiled CPU kernels: raw pointers in, nothing of torch inside.";
  m.def("isa", [] { return fastmtl::isa_name(fastmtl::active_isa()); }, "The instruction set chosen at load.");
  bind_gradients(m);
  bind_sigmoid_losses(m);
  bind_softmax_losses(m);
  bind_other_losses(m);
  bind_deep_supervision(m);
  bind_loading(m);
  bind_matching(m);
  bind_stain(m);
}
