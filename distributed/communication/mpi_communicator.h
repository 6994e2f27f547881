#pragma once

#include <memory>
#include <string>

#include "distributed/communication/communicator.h"

namespace flashmorph {

// MPI for the life of this object; declare it first in main. Sets MPI_ERRORS_RETURN, and makes waiting ranks yield
// when the ranks of a host outnumber its cores.
class MpiSession {
 public:
  MpiSession(int* argc, char*** argv);
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  std::unique_ptr<Communicator> world() const;  // host tensors; large counts are cut into pieces MPI can take

  // Ends every rank of the job with this exit code.
  [[noreturn]] static void abort(int code);
};

}  // namespace flashmorph
