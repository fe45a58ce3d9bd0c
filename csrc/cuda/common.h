// SPDX-License-Identifier: Apache-2.0
// What every CUDA op needs: checked calls and launches, scratch, packed coordinates, bits.
#pragma once
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "ops.h"

namespace sdfvq {

static constexpr int BLOCK = 256;  // threads

inline void check(cudaError_t error, const Gpu &gpu) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(gpu.op) + ": " + cudaGetErrorString(error));
}

inline cudaStream_t stream(const Gpu &gpu) { return static_cast<cudaStream_t>(gpu.stream); }

// The first thing an op does: our copy of the runtime need not have torch's device current.
inline void begin(const Gpu &gpu) { check(cudaSetDevice(gpu.device), gpu); }

template <class T>
T *make(const Gpu &gpu, int64_t count) {
  return static_cast<T *>(gpu.alloc(size_t(count) * sizeof(T)));
}

template <class T>
T *make_filled(const Gpu &gpu, int64_t count, int byte) {
  T *p = make<T>(gpu, count);
  check(cudaMemsetAsync(p, byte, size_t(count) * sizeof(T), stream(gpu)), gpu);
  return p;
}

// The stream may still use it: torch hands it out again only to what comes later on the same stream.
inline void drop(const Gpu &gpu, void *p) { gpu.free(p); }

// Waits for the stream and copies one value from the device.
template <class T>
T read(const Gpu &gpu, const T *p) {
  T value;
  check(cudaMemcpyAsync(&value, p, sizeof(T), cudaMemcpyDeviceToHost, stream(gpu)), gpu);
  check(cudaStreamSynchronize(stream(gpu)), gpu);
  return value;
}

// Enough blocks for `threads` threads; the kernel drops those beyond.
template <class... P, class... A>
void launch(const Gpu &gpu, void (*kernel)(P...), int64_t threads, A... args) {
  if (threads <= 0) return;
  const int64_t blocks = (threads + BLOCK - 1) / BLOCK;
  if (blocks > INT32_MAX) throw std::runtime_error(std::string(gpu.op) + ": too many elements for one launch");
  kernel<<<unsigned(blocks), BLOCK, 0, stream(gpu)>>>(args...);
  check(cudaGetLastError(), gpu);
}

// Calls a CUB algorithm twice, as it wants it: for the size of its scratch, then for the work.
template <class Fn>
void with_scratch(const Gpu &gpu, Fn fn) {
  size_t bytes = 0;
  check(fn(static_cast<void *>(nullptr), bytes), gpu);
  void *scratch = make<char>(gpu, int64_t(bytes) + 1);  // null would ask for the size again
  check(fn(scratch, bytes), gpu);
}

#ifdef __CUDACC__

__device__ inline int64_t thread_index() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }

// Coordinates that core.pack_keys takes: a neighbour one step away stays within 16 bits.
__device__ inline bool in_range(int v) { return unsigned(v) + 32767u <= 65533u; }
__device__ inline bool batch_in_range(int b) { return unsigned(b) <= 32766u; }

__device__ inline unsigned low_bits(int n) { return n >= 32 ? ~0u : (1u << n) - 1; }  // n >= 0

#endif

}  // namespace sdfvq
