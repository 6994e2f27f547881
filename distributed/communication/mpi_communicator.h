#pragma once

#include <memory>
#include <string>

#include "distributed/communication/communicator.h"

namespace flashmorph {

// MPI for the life of this object; declare it first in main. Sets MPI_ERRORS_RETURN, makes waiting ranks yield
// when the ranks of a host outnumber its cores, and leaves Open MPI's one-sided transport over libfabric out; what
// OMPI_MCA_mpi_yield_when_idle and OMPI_MCA_btl say already stands.
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
