#pragma once

// What a worker finds out about its machine for the defaults of its flags. Main thread.

#include <cstdint>
#include <string>

namespace gradq {

// Physical memory, or the control group's limit when that is smaller.
int64_t MachineMemoryBytes();

// "{host}-{pid}", with characters that a worker's name may not have replaced by '-'.
std::string DefaultWorkerName();

// Below the system's folder for temporary files; not created. Workers may share it.
std::string DefaultSpoolFolder();

}  // namespace gradq
