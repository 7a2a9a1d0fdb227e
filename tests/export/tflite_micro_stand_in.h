// What an emitted program uses of LiteRT for Microcontrollers, for tests on a host without its sources. Names and
// signatures are the library's; `Invoke` hands the model, the arena's size and the inputs to INTERPRETER, a command that
// runs the library's own interpreter from Python.
#ifndef TFLITE_MICRO_STAND_IN_H_
#define TFLITE_MICRO_STAND_IN_H_

#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "model_data.h"

#define TFLITE_SCHEMA_VERSION (3)

enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };

union TfLitePtrUnion {
  char* raw;
};

struct TfLiteTensor {
  TfLitePtrUnion data;
  size_t bytes;
};

inline void MicroPrintf(const char* format, ...) {
  va_list args;
  va_start(args, format);
  std::vprintf(format, args);
  std::putchar('\n');
  va_end(args);
}

namespace tflite {

inline void InitializeTarget() {}

struct Model {
  uint32_t version() const { return TFLITE_SCHEMA_VERSION; }
};

inline const Model* GetModel(const void* data) {
  static const Model model;
  return data == model_data && reinterpret_cast<uintptr_t>(data) % 16 == 0 ? &model : nullptr;
}

template <unsigned int Count>
class MicroMutableOpResolver {
 public:
#define METHOD(name) \
  TfLiteStatus Add##name() { return Add(#name); }
  METHOD(Add) METHOD(AveragePool2D) METHOD(Concatenation) METHOD(Conv2D) METHOD(DepthwiseConv2D) METHOD(Dequantize)
  METHOD(EthosU) METHOD(Exp) METHOD(FullyConnected) METHOD(Logistic) METHOD(MaxPool2D) METHOD(Mean) METHOD(Mul)
  METHOD(Pad) METHOD(Quantize) METHOD(Reshape) METHOD(Softmax) METHOD(Sub) METHOD(Sum) METHOD(Transpose)
#undef METHOD

 private:
  TfLiteStatus Add(const char* name) {
    return names_.insert(name).second && names_.size() <= Count ? kTfLiteOk : kTfLiteError;
  }
  std::set<std::string> names_;
};

class MicroInterpreter {
 public:
  template <unsigned int Count>
  MicroInterpreter(const Model*, const MicroMutableOpResolver<Count>&, uint8_t*, size_t size) : size_(size) {}

  TfLiteStatus AllocateTensors() { return Ask("sizes") ? kTfLiteOk : kTfLiteError; }
  TfLiteStatus Invoke() { return Ask("answer") ? kTfLiteOk : kTfLiteError; }
  TfLiteTensor* input(size_t index) { return index < inputs_.size() ? &inputs_[index] : nullptr; }
  TfLiteTensor* output(size_t index) { return index < outputs_.size() ? &outputs_[index] : nullptr; }
  size_t arena_used_bytes() const { return size_; }

 private:
  // Lines of `i` or `o`, bytes, and for each byte its value.
  bool Ask(const std::string& what) {
    const std::string command = std::string(std::getenv("INTERPRETER")) + " " + what + " " + std::to_string(size_);
    std::FILE* given = std::fopen("given", "wb");
    for (TfLiteTensor& tensor : inputs_) std::fwrite(tensor.data.raw, 1, tensor.bytes, given);
    std::fclose(given);
    std::FILE* told = popen(command.c_str(), "r");
    std::vector<TfLiteTensor>* into = nullptr;
    inputs_.resize(what == "sizes" ? 0 : inputs_.size());
    outputs_.clear();
    char kind;
    size_t bytes;
    while (std::fscanf(told, " %c %zu", &kind, &bytes) == 2) {
      into = kind == 'i' ? &inputs_ : &outputs_;
      TfLiteTensor tensor{{static_cast<char*>(std::calloc(bytes, 1))}, bytes};
      for (size_t at = 0, value; at < bytes && std::fscanf(told, "%zu", &value) == 1; ++at) {
        tensor.data.raw[at] = static_cast<char>(value);
      }
      into->push_back(tensor);
    }
    return pclose(told) == 0;
  }

  size_t size_;
  std::vector<TfLiteTensor> inputs_, outputs_;
};

}  // namespace tflite

#endif  // TFLITE_MICRO_STAND_IN_H_
