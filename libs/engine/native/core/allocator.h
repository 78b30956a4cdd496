// allocator.h: how the C library's allocator keeps memory of a process that runs for months.
#pragma once

namespace engine {

// Few arenas, large blocks from the system and back to it, free ends given back early. By itself glibc makes eight arenas a core, each of which keeps its
// own free memory, and raises the size from which blocks go back to the system to that of the largest one ever freed: a server's memory then grows for
// hours although nothing leaks. For the whole process, from now on; arenas that are there stay. Does nothing with another C library.
void bound_allocator() noexcept;

}  // namespace engine
