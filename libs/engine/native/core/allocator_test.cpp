#include "core/allocator.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string_view>
#include <thread>
#include <vector>

#include "core/test.h"

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)
#include <malloc.h>

using namespace engine;

namespace {

// Written to, or the compiler would leave the allocation out.
void* used(std::size_t bytes) {
  void* const block = std::malloc(bytes);
  static_cast<volatile char*>(block)[0] = 1;
  return block;
}

// Of glibc's own account of itself.
int arenas() {
  char* data = nullptr;
  std::size_t size = 0;
  std::FILE* out = open_memstream(&data, &size);
  malloc_info(0, out);
  std::fclose(out);
  const std::unique_ptr<char, decltype(&std::free)> owned(data, std::free);
  int count = 0;
  for (std::size_t at = 0; (at = std::string_view(data, size).find("<heap nr=", at)) != std::string_view::npos; ++at) ++count;
  return count;
}

}  // namespace

TEST("with a bounded allocator, threads share arenas and large blocks go back to the system, however large the largest was") {
  bound_allocator();
  const int before = arenas();
  std::vector<std::thread> threads;
  for (int i = 0; i < 6; ++i) threads.emplace_back([] { std::free(used(1000)); });
  for (std::thread& thread : threads) thread.join();
  CHECK(arenas() <= std::max(2, before));
  std::free(used(std::size_t{16} << 20));
  const std::size_t mapped = mallinfo2().hblks;
  void* const large = used(std::size_t{4} << 20);
  CHECK_EQ(mallinfo2().hblks, mapped + 1);
  std::free(large);
  CHECK_EQ(mallinfo2().hblks, mapped);
}
#endif
