/* Detects objects with the OpenVINO model of a folder, as predict.py does; prints a line for each
   box, best first: score, x0, y0, x1, y1 in pixels of the image, and the class.

   sudo apt-get install g++ libopencv-imgcodecs-dev; pip install openvino
   P=$(python -c 'import openvino; print(openvino.__path__[0])')
   g++ -std=c++17 -O2 detect.cpp -o detect -I$P/include -I/usr/include/opencv4 \
       $P/libs/libopenvino.so.* -Wl,-rpath,$P/libs -lopencv_imgcodecs -lopencv_imgproc -lopencv_core
   ./detect . image.jpg 0.3 */
#include <algorithm>
#include <cstdio>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <openvino/openvino.hpp>

struct Found { cv::Rect2d box; float score; int label; };

int main(int count, char** words) try {
    if (count != 4) throw std::runtime_error("give FOLDER IMAGE THRESHOLD");
    const std::string folder = std::string(words[1]) + "/";
    const cv::FileStorage spec(folder + "model.json", cv::FileStorage::READ);
    const cv::Mat image = cv::imread(words[2], cv::IMREAD_COLOR);
    if (!spec.isOpened()) throw std::runtime_error(folder + "model.json cannot be read");
    if (image.empty()) throw std::runtime_error(std::string(words[2]) + " cannot be read");
    const auto input = spec["input"], limits = spec["detections"], names = spec["classes"];
    const int height = input["size"][0], width = input["size"][1], classes = names.size();
    const double x = double(image.cols) / width, y = double(image.rows) / height;

    cv::Mat pixels;  // RGB of the network's size
    if (std::string(input["resampling"]) == "asymmetric")  // pixel i shows i * ratio
        cv::warpAffine(image, pixels, cv::Matx23d(x, 0, 0, 0, y, 0), {width, height},
                       cv::INTER_LINEAR | cv::WARP_INVERSE_MAP, cv::BORDER_REPLICATE);
    else
        cv::resize(image, pixels, {width, height});
    cv::cvtColor(pixels, pixels, cv::COLOR_BGR2RGB);

    auto model = ov::Core().compile_model(folder + std::string(spec["file"]), "CPU",
                                          ov::hint::inference_precision(ov::element::f32));
    auto request = model.create_infer_request();
    const ov::Shape shape{1, size_t(height), size_t(width), 3};
    request.set_input_tensor(ov::Tensor(ov::element::u8, shape, pixels.data));
    request.infer();
    const float* boxes = request.get_output_tensor(0).data<const float>();   // (R, 4)
    const float* scores = request.get_output_tensor(1).data<const float>();  // (R, K)
    const int all = request.get_output_tensor(1).get_size();

    std::vector<int> order;  // of the anchors' classes, best first
    for (int i = 0; i < all; ++i)
        if (scores[i] > std::stof(words[3])) order.push_back(i);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return scores[a] > scores[b]; });
    const int of_class = limits["candidates_per_class"], clip = limits["clip_before_nms"];
    const int of_image = limits["candidates"], across = limits["across_classes"];
    const size_t most = int(limits["max_detections"]);
    const double threshold = limits["nms_threshold"];
    const cv::Rect2d frame(0, 0, width, height);
    std::vector<Found> kept;
    std::vector<int> seen(classes);
    int taken = 0;
    for (int i : order) {
        const int label = i % classes;
        if (of_class && seen[label]++ >= of_class) continue;
        if (kept.size() == most || taken++ == of_image) break;
        const float* side = boxes + i / classes * 4;
        cv::Rect2d box(side[0], side[1], side[2] - side[0], side[3] - side[1]);
        if (clip) box &= frame;
        const bool covered = std::any_of(kept.begin(), kept.end(), [&](const Found& other) {
            const double both = (box & other.box).area();
            return (across || label == other.label) &&
                   both > threshold * (box.area() + other.box.area() - both);
        });
        if (!covered) kept.push_back({box, scores[i], label});
    }
    for (const auto& [whole, score, label] : kept) {
        const cv::Rect2d box = whole & frame;
        if (!box.empty())
            std::printf("%.6f %.3f %.3f %.3f %.3f %s\n", score, box.x * x, box.y * y,
                        box.br().x * x, box.br().y * y, std::string(names[label]).c_str());
    }
} catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
