// Runs an .onnx build of edgeq on frames at a fixed rate, or proves that it answers here as it did when it was built.
//
//     drone MODEL.onnx --frames FOLDER [--hz 30] [--count 0] [--threads 1]
//     drone MODEL.onnx --golden FOLDER [--tolerance 0]
//
// FOLDER holds what golden.npz of the build unpacks to. In place of recorded frames, put your camera into `frame`.
// Exit codes: 0 done, or the golden answers came; 1 other answers; 2 wrong use, or a failure.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "npy.hpp"

namespace {

using Clock = std::chrono::steady_clock;  // never set back or forth, as the time of day may be

volatile std::sig_atomic_t stopped = 0;

struct Kind {
    const char* npy;
    ONNXTensorElementDataType onnx;
    double (*value)(const char*);
};

template <typename T>
double value(const char* at) {
    T found;
    std::memcpy(&found, at, sizeof found);
    return static_cast<double>(found);
}

const Kind& kind(const std::string& npy) {
    static const Kind kinds[] = {
        {"<f4", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, value<float>},
        {"<f8", ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, value<double>},
        {"|i1", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, value<int8_t>},
        {"|u1", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, value<uint8_t>},
        {"<i4", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, value<int32_t>},
        {"<i8", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, value<int64_t>},
        {"|b1", ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, value<bool>},
    };
    for (const Kind& one : kinds)
        if (npy == one.npy) return one;
    throw std::runtime_error("arrays of type " + npy + " are not read here");
}

class Model {
public:
    Model(const std::string& path, int threads) : session_(nullptr) {
        Ort::SessionOptions options;
        options.SetIntraOpNumThreads(threads);  // edgeq measures with one, unless told otherwise
        session_ = Ort::Session(env_, path.c_str(), options);
        Ort::AllocatorWithDefaultOptions allocator;
        for (size_t i = 0; i < session_.GetInputCount(); ++i)
            inputs.push_back(session_.GetInputNameAllocated(i, allocator).get());
        for (size_t i = 0; i < session_.GetOutputCount(); ++i)
            outputs.push_back(session_.GetOutputNameAllocated(i, allocator).get());
    }

    std::vector<Ort::Value> run(const std::vector<Ort::Value>& frame) {
        std::vector<const char*> in, out;
        for (const auto& name : inputs) in.push_back(name.c_str());
        for (const auto& name : outputs) out.push_back(name.c_str());
        return session_.Run(Ort::RunOptions{nullptr}, in.data(), frame.data(), in.size(), out.data(), out.size());
    }

    std::vector<std::string> inputs, outputs;

private:
    Ort::Env env_{ORT_LOGGING_LEVEL_WARNING, "drone"};
    Ort::Session session_;
};

// One array for each input of the model, and how many samples they hold.
struct Frames {
    std::vector<Npy> arrays;
    size_t count = std::numeric_limits<size_t>::max();

    Frames(const std::string& folder, const Model& model) {
        for (const auto& name : model.inputs) {
            arrays.push_back(read_npy(folder + "/input:" + name + ".npy"));
            count = std::min(count, arrays.back().samples());
        }
        if (count == 0) throw std::runtime_error(folder + " holds no samples");
    }

    // The tensors look at the arrays' own memory: nothing is copied.
    std::vector<Ort::Value> frame(size_t i) {
        static const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        std::vector<Ort::Value> tensors;
        for (Npy& array : arrays) {
            auto shape = array.shape;
            shape[0] = 1;
            tensors.push_back(Ort::Value::CreateTensor(memory, array.data.data() + i * array.sample_bytes(),
                                                       array.sample_bytes(), shape.data(), shape.size(),
                                                       kind(array.type).onnx));
        }
        return tensors;
    }
};

// The largest difference of an answer to the golden one: 0 if all bits are the same, infinity if type or shape are not.
double gap(const Ort::Value& answer, const Npy& golden, size_t i) {
    const auto info = answer.GetTensorTypeAndShapeInfo();
    auto shape = golden.shape;
    shape[0] = 1;
    const Kind& type = kind(golden.type);
    if (info.GetShape() != shape || info.GetElementType() != type.onnx) return std::numeric_limits<double>::infinity();
    const char* now = static_cast<const char*>(answer.GetTensorRawData());
    const char* then = golden.data.data() + i * golden.sample_bytes();
    const size_t count = info.GetElementCount();
    const size_t bytes = count == 0 ? 0 : golden.sample_bytes() / count;
    double largest = 0;
    for (size_t at = 0; at < count * bytes; at += bytes) {
        if (std::memcmp(now + at, then + at, bytes) == 0) continue;
        const double difference = std::abs(type.value(now + at) - type.value(then + at));
        // The least number above 0 stands for other bits of an equal value. NaN on one side is no small difference.
        largest = std::isnan(difference) ? std::numeric_limits<double>::infinity()
                                         : std::max({largest, difference, std::numeric_limits<double>::denorm_min()});
    }
    return largest;
}

int prove(Model& model, const std::string& folder, double tolerance) {
    Frames frames(folder, model);
    std::vector<Npy> golden;
    for (size_t output = 0; output < model.outputs.size(); ++output) {
        golden.push_back(read_npy(folder + "/output:onnx:" + std::to_string(output) + ".npy"));
        if (golden.back().samples() != frames.count) throw std::runtime_error(folder + ": answers are missing");
    }
    double largest = 0;
    for (size_t i = 0; i < frames.count; ++i) {
        const auto answers = model.run(frames.frame(i));
        for (size_t output = 0; output < answers.size(); ++output)
            largest = std::max(largest, gap(answers[output], golden[output], i));
    }
    if (largest == 0)
        std::printf("golden: %zu samples, the same bits\n", frames.count);
    else
        std::printf("golden: %zu samples, answers moved by up to %.3g, allowed are %.3g\n", frames.count, largest,
                    tolerance);
    return largest <= tolerance ? 0 : 1;
}

int fly(Model& model, const std::string& folder, double hz, size_t count) {
    Frames frames(folder, model);
    const auto period = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(1 / hz));
    std::vector<double> milliseconds;
    size_t late = 0;
    model.run(frames.frame(0));  // the first call sets up memory, and takes longer
    auto due = Clock::now();
    for (size_t n = 0; !stopped && (count == 0 || n < count); ++n) {
        std::this_thread::sleep_until(due);
        const auto begin = Clock::now();
        const auto answers = model.run(frames.frame(n % frames.count));
        // Act on `answers` here: answers[0].GetTensorData<float>()
        const auto end = Clock::now();
        milliseconds.push_back(std::chrono::duration<double, std::milli>(end - begin).count());
        due += period;
        if (end > due) {
            ++late;     // it was answered after the next frame was there
            due = end;  // which is taken now, without catching up
        }
    }
    if (milliseconds.empty()) return 0;
    std::sort(milliseconds.begin(), milliseconds.end());
    const size_t n = milliseconds.size();
    std::printf("%zu frames at %g Hz: median %.3f ms, p99 %.3f ms, %zu late\n", n, hz, milliseconds[n / 2],
                milliseconds[(99 * n + 99) / 100 - 1], late);
    return 0;
}

double number(const std::map<std::string, std::string>& options, const char* name, double otherwise, double least,
              double most) {
    const auto found = options.find(name);
    if (found == options.end()) return otherwise;
    char* end = nullptr;
    const double value = std::strtod(found->second.c_str(), &end);
    if (found->second.empty() || *end != 0 || !(value >= least && value <= most))
        throw std::runtime_error(std::string(name) + " " + found->second + " is no number that it could be");
    return value;
}

}  // namespace

int main(int argc, char** argv) {
    std::map<std::string, std::string> options;
    for (int i = 2; i + 1 < argc; i += 2) options[argv[i]] = argv[i + 1];
    bool known = true;
    for (const auto& option : options) {
        static const char* names[] = {"--frames", "--golden", "--hz", "--count", "--threads", "--tolerance"};
        known = known && std::any_of(std::begin(names), std::end(names),
                                     [&](const char* name) { return option.first == name; });
    }
    const bool golden = options.count("--golden") == 1;
    if (!known || argc < 2 || argc % 2 != 0 || golden == (options.count("--frames") == 1)) {
        std::fprintf(stderr, "usage: drone MODEL.onnx --frames FOLDER [--hz 30] [--count 0] [--threads 1]\n"
                             "       drone MODEL.onnx --golden FOLDER [--tolerance 0]\n");
        return 2;
    }
    std::signal(SIGINT, [](int) { stopped = 1; });
    std::signal(SIGTERM, [](int) { stopped = 1; });
    try {
        Model model(argv[1], static_cast<int>(number(options, "--threads", 1, 0, 1024)));
        if (golden) return prove(model, options["--golden"], number(options, "--tolerance", 0, 0, 1e30));
        return fly(model, options["--frames"], number(options, "--hz", 30, 1e-3, 1e9),
                   static_cast<size_t>(number(options, "--count", 0, 0, 1e15)));
    } catch (const std::exception& error) {
        std::fprintf(stderr, "drone: %s\n", error.what());
        return 2;
    }
}
