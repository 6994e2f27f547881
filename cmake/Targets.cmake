# flashmorph_precompiled(headers HEADERS ... LINKS ... [PIE]): the headers, read once for all targets that reuse them.
function(flashmorph_precompiled name)
  cmake_parse_arguments(arg "PIE" "" "HEADERS;LINKS" ${ARGN})
  file(CONFIGURE OUTPUT "${CMAKE_CURRENT_BINARY_DIR}/${name}.cpp" CONTENT "")
  add_library(${name} OBJECT "${CMAKE_CURRENT_BINARY_DIR}/${name}.cpp")
  target_link_libraries(${name} PRIVATE ${arg_LINKS})
  target_precompile_headers(${name} PRIVATE ${arg_HEADERS})
  if(arg_PIE)  # as a program's sources are compiled
    set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    target_compile_options(${name} PRIVATE ${CMAKE_CXX_COMPILE_OPTIONS_PIE})
  endif()
endfunction()

# Most of a file's time goes into the templates that its neighbours instantiate again: a folder's files are compiled eight at a
# time. Those of ROOMS give the same names to what is theirs, and are compiled one by one.
function(flashmorph_together target)
  if(FLASHMORPH_TOGETHER)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON)
  endif()
endfunction()

# flashmorph_library(core_ops DEPENDS ...): the folder's *.cpp as one library, flashmorph::core_ops.
# SHARED for libraries whose operators register themselves at load time. One that has torch, by itself or by what it
# depends on (FLASHMORPH_TORCH), gets torch's headers precompiled.
function(flashmorph_library name)
  cmake_parse_arguments(arg "SHARED;ROOMS" "" "DEPENDS" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/*.cpp")
  set(target flashmorph_${name})
  if(NOT sources)
    add_library(${target} INTERFACE)
    set(visibility INTERFACE)
  else()
    set(kind STATIC)
    if(arg_SHARED)
      set(kind SHARED)
    endif()
    add_library(${target} ${kind} ${sources})
    set(visibility PUBLIC)
  endif()
  target_include_directories(${target} ${visibility} "${CMAKE_SOURCE_DIR}")
  target_link_libraries(${target} ${visibility} ${arg_DEPENDS})
  add_library(flashmorph::${name} ALIAS ${target})
  set(has_torch OFF)
  foreach(dependency ${arg_DEPENDS})
    get_target_property(torch ${dependency} FLASHMORPH_TORCH)
    if(torch)
      set(has_torch ON)
    endif()
  endforeach()
  set_target_properties(${target} PROPERTIES FLASHMORPH_TORCH ${has_torch})
  if(has_torch AND sources)
    target_precompile_headers(${target} REUSE_FROM flashmorph_headers)
  endif()
  if(NOT arg_ROOMS)
    flashmorph_together(${target})
  endif()
endfunction()

# flashmorph_test_program(name FILES ... DEPENDS ... [ROOMS]): with the tests' support and GoogleTest.
function(flashmorph_test_program name)
  cmake_parse_arguments(arg "ROOMS" "" "FILES;DEPENDS" ${ARGN})
  add_executable(${name} ${arg_FILES})
  target_link_libraries(${name} PRIVATE ${arg_DEPENDS} flashmorph::test_support GTest::gmock)
  target_precompile_headers(${name} REUSE_FROM flashmorph_test_headers)
  if(NOT arg_ROOMS)
    flashmorph_together(${name})
  endif()
endfunction()

# flashmorph_unit_test(core_ops DEPENDS ... [ROOMS]): tests/unit/<folder>/*.cpp as one test program.
function(flashmorph_unit_test name)
  cmake_parse_arguments(arg "ROOMS" "TIMEOUT" "DEPENDS" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/*.cpp")
  if(NOT sources)
    return()
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 300)
  endif()
  set(target test_${name})
  set(rooms)
  if(arg_ROOMS)
    set(rooms ROOMS)
  endif()
  flashmorph_test_program(${target} ${rooms} FILES ${sources} DEPENDS ${arg_DEPENDS} GTest::gtest_main)
  add_test(NAME unit.${name} COMMAND ${target} WORKING_DIRECTORY "${CMAKE_SOURCE_DIR}")
  set_tests_properties(unit.${name} PROPERTIES TIMEOUT ${arg_TIMEOUT} ENVIRONMENT "OMP_NUM_THREADS=1;MKL_NUM_THREADS=1")
endfunction()

# flashmorph_mpi_test(stages FILES ... RANKS 1 2 4 STRICT 4 DEPENDS ...): one program, one ctest entry per number of ranks;
# with those of STRICT the ranks may count on no more than NCCL gives (tests/mpi/strict_communicator.h).
function(flashmorph_mpi_test name)
  cmake_parse_arguments(arg "" "TIMEOUT" "FILES;RANKS;STRICT;DEPENDS" ${ARGN})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 300)
  endif()
  set(target mpi_test_${name})
  flashmorph_test_program(${target} FILES ${arg_FILES} DEPENDS ${arg_DEPENDS} flashmorph_mpi_main)
  foreach(ranks ${arg_RANKS})
    set(strict)
    if(ranks IN_LIST arg_STRICT)
      set(strict --strict)
    endif()
    add_test(NAME mpi.${name}.np${ranks}
             COMMAND ${MPIEXEC_EXECUTABLE} --oversubscribe --bind-to none -np ${ranks} $<TARGET_FILE:${target}> ${strict}
             WORKING_DIRECTORY "${CMAKE_SOURCE_DIR}")
    set(cores 2)
    if(ranks EQUAL 1)
      set(cores 1)
    endif()
    set_tests_properties(mpi.${name}.np${ranks} PROPERTIES TIMEOUT ${arg_TIMEOUT} PROCESSORS ${cores} ENVIRONMENT
      "OMP_NUM_THREADS=1;MKL_NUM_THREADS=1;OMPI_ALLOW_RUN_AS_ROOT=1;OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1;OMPI_MCA_mpi_yield_when_idle=1")
    if(ranks GREATER 4)
      set_tests_properties(mpi.${name}.np${ranks} PROPERTIES LABELS slow)
    endif()
  endforeach()
endfunction()

# flashmorph_embed(target file.txt function): the text as `std::string_view flashmorph::function()` inside the target.
function(flashmorph_embed target file function)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
  file(READ ${file} text)
  file(CONFIGURE OUTPUT "${CMAKE_CURRENT_BINARY_DIR}/${function}.cpp" @ONLY CONTENT [==[
#include <string_view>

namespace flashmorph {

std::string_view @function@() {
  return R"EMBEDDED(@text@)EMBEDDED";
}

}  // namespace flashmorph
]==])
  target_sources(${target} PRIVATE "${CMAKE_CURRENT_BINARY_DIR}/${function}.cpp")
endfunction()
