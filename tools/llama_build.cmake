# Included by CMake right after llama.cpp's own project() line (CMAKE_PROJECT_<name>_INCLUDE).
# llama-cpp-python insists on llama.cpp's helper library for command line programs, which nothing in Python
# calls and which is half of the time of the build. Where a later release renames it, this does nothing.
set(CMAKE_POLICY_DEFAULT_CMP0077 NEW)
set(LLAMA_BUILD_COMMON OFF)
