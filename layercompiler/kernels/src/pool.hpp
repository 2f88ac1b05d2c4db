// A persistent pool: many small jobs a second, so threads are started once.
#pragma once
#include <cstddef>
#include <cstdint>

namespace layercompiler {

// Calls work(context, index) for index = 0 .. count - 1 on at most `threads` threads, the caller being one of them. Returns when all are done.
void run_parallel(int64_t count, int threads, void (*work)(void*, int64_t), void* context);

template <class Function> void parallel(int64_t count, int threads, Function&& function) {
  run_parallel(count, threads, [](void* context, int64_t index) { (*static_cast<Function*>(context))(index); }, &function);
}

// 64-byte aligned memory of this thread, kept between calls; one user at a time.
void* scratch(size_t bytes);

}  // namespace layercompiler
