// SPDX-License-Identifier: Apache-2.0
// The extension `sdfvq._C`: plain buffers in and out, no torch headers, so one build serves every torch.
#include <pybind11/pybind11.h>

namespace sdfvq {
void bind_neighbors(pybind11::module_ &m);
void bind_gather_blocks(pybind11::module_ &m);
void bind_conv(pybind11::module_ &m);
void bind_join(pybind11::module_ &m);
void bind_nearest(pybind11::module_ &m);
void bind_closest_point(pybind11::module_ &m);
void bind_winding(pybind11::module_ &m);
void bind_voxelize(pybind11::module_ &m);
void bind_march(pybind11::module_ &m);
void bind_topology(pybind11::module_ &m);
void bind_regions(pybind11::module_ &m);
void bind_flood(pybind11::module_ &m);
void bind_compact(pybind11::module_ &m);
}  // namespace sdfvq

PYBIND11_MODULE(_C, m) {
  m.doc() = "C++ kernels of sdfvq for the CPU";
  sdfvq::bind_neighbors(m);
  sdfvq::bind_gather_blocks(m);
  sdfvq::bind_conv(m);
  sdfvq::bind_join(m);
  sdfvq::bind_nearest(m);
  sdfvq::bind_closest_point(m);
  sdfvq::bind_winding(m);
  sdfvq::bind_voxelize(m);
  sdfvq::bind_march(m);
  sdfvq::bind_topology(m);
  sdfvq::bind_regions(m);
  sdfvq::bind_flood(m);
  sdfvq::bind_compact(m);
}
