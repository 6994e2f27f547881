#include <gtest/gtest.h>

#include <string_view>

#include "distributed/communication/mpi_communicator.h"
#include "tests/mpi/strict_communicator.h"
#include "tests/mpi/world.h"

namespace flashmorph::test {
namespace {

Communicator* all_ranks = nullptr;

}  // namespace

Communicator& world() { return *all_ranks; }

}  // namespace flashmorph::test

// Every rank runs every test; only rank 0 speaks, but a failure on any rank fails the program. With --strict the ranks
// may count on no more than NCCL gives them.
int main(int argc, char** argv) {
  flashmorph::MpiSession session(&argc, &argv);
  ::testing::InitGoogleTest(&argc, argv);
  auto world = session.world();
  if (argc > 1 && std::string_view(argv[1]) == "--strict")
    world = flashmorph::test::strict_communicator(std::move(world));
  flashmorph::test::all_ranks = world.get();
  if (world->rank() != 0) {
    auto& listeners = ::testing::UnitTest::GetInstance()->listeners();
    class FailuresOnly : public ::testing::EmptyTestEventListener {
      void OnTestPartResult(const ::testing::TestPartResult& result) override {
        if (result.failed()) fprintf(stderr, "%s:%d: %s\n", result.file_name(), result.line_number(), result.message());
      }
    };
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new FailuresOnly);
  }
  return RUN_ALL_TESTS();
}
