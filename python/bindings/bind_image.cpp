// SPDX-License-Identifier: Apache-2.0
#include "bindings.hpp"

namespace mpsnn::python {
namespace {

void log_copy(const char* what, const py::array& array) {
  py::module_::import("logging").attr("getLogger")("mpsnn").attr("info")("%s: copied an array of %s to float32", what, array.dtype());
}

/// Keeps an array alive and remembers whether it may be written to.
struct ArrayRelease {
  std::shared_ptr<void> array;
  bool is_writable;
  void operator()(void*) const {}
};

bool may_write(const Buffer& buffer) {
  const auto* array = std::get_deleter<ArrayRelease>(buffer.owner());
  return !array || array->is_writable;
}

bool is_dense(const py::array& array) { return (array.flags() & py::array::c_style) != 0; }

ImagePtr make_image(const ImageDescriptor& descriptor) { return std::make_shared<Image>(descriptor.shape()); }

std::vector<py::ssize_t> dimensions(const Shape& shape) { return {shape.images, shape.height, shape.width, shape.channels}; }

py::object image_array(const ImagePtr& image) {
  return numpy_of(Buffer(image, image->buffer().data(), image->buffer().count(), image->type()), dimensions(image->shape()), may_write(image->buffer()));
}

}  // namespace

ArrayView view_of(const py::object& object, const char* what) {
  py::object source = object;
  if (!py::isinstance<py::array>(source) && py::hasattr(source, "__dlpack__")) source = py::module_::import("numpy").attr("from_dlpack")(source);
  py::array array = py::array::ensure(source);
  if (!array || std::string("fiub").find(array.dtype().kind()) == std::string::npos) {
    PyErr_Clear();
    throw OptionError(std::string(what) + " must be an array of numbers.",
                      {.expected = "a NumPy array, a buffer or an object with __dlpack__", .actual = py::str(array ? py::object(array.dtype()) : py::object(py::type::of(object))).cast<std::string>(),
                       .hint = "numpy.asarray(..., dtype=numpy.float32) shows what is in it"});
  }
  const bool is_double = array.dtype().is(py::dtype::of<double>()) || array.dtype().equal(py::dtype::of<double>());
  const bool is_single = array.dtype().equal(py::dtype::of<float>());
  if (!(is_single || is_double) || !is_dense(array)) {
    log_copy(what, array);
    array = is_double ? py::array(py::array_t<double, py::array::c_style | py::array::forcecast>::ensure(array))
                      : py::array(py::array_t<float, py::array::c_style | py::array::forcecast>::ensure(array));
    if (!array) throw py::error_already_set();
  }
  const std::size_t count = array.size();
  const ElementType type = is_double ? ElementType::float64 : ElementType::float32;
  std::vector<py::ssize_t> shape(array.shape(), array.shape() + array.ndim());
  void* data = const_cast<void*>(array.data());
  const bool is_writable = array.writeable();
  std::shared_ptr<void> owner(data, ArrayRelease{keep_object(std::move(array)), is_writable});
  return {Buffer(std::move(owner), data, count, type), std::move(shape)};
}

py::object numpy_of(const Buffer& buffer, std::vector<py::ssize_t> shape, bool is_writable) {
  if (!buffer) return py::none();
  if (shape.empty()) shape = {static_cast<py::ssize_t>(buffer.count())};
  const py::dtype type = buffer.type() == ElementType::float64 ? py::dtype::of<double>() : py::dtype::of<float>();
  auto* owner = new std::shared_ptr<void>(buffer.owner());
  py::capsule capsule(owner, [](void* pointer) { delete static_cast<std::shared_ptr<void>*>(pointer); });
  py::array array(type, std::move(shape), buffer.data(), capsule);
  if (!is_writable) array.attr("setflags")("write"_a = false);
  return array;
}

ImagePtr image_of(const py::object& object) {
  if (py::isinstance<Image>(object)) return object.cast<ImagePtr>();
  ArrayView view = view_of(object, "an image");
  if (view.shape.size() != 4)
    throw ShapeError("an image is an array of four dimensions: images, height, width, feature channels.",
                     {.node = "MPSImage", .expected = "N x H x W x C", .actual = py::str(py::cast(view.shape)).cast<std::string>(),
                      .hint = "array[None] adds the image dimension, array[..., None] the channel"});
  for (py::ssize_t size : view.shape)
    if (size > std::numeric_limits<int>::max())
      throw ShapeError("an image dimension is too large.", {.node = "MPSImage", .expected = "below 2^31", .actual = std::to_string(size)});
  const Shape shape{int(view.shape[0]), int(view.shape[1]), int(view.shape[2]), int(view.shape[3])};
  return std::make_shared<Image>(shape, std::move(view.buffer));
}

std::vector<ImagePtr> images_of(const py::object& list, const char* what) {
  std::vector<ImagePtr> images;
  if (list.is_none()) return images;
  if (!py::isinstance<py::list>(list) && !py::isinstance<py::tuple>(list))
    throw OptionError(std::string(what) + " must be a list, one image per input of the graph.",
                      {.node = "MPSNNGraph", .expected = "a list", .actual = py::str(py::type::of(list)).cast<std::string>(), .hint = "[image]"});
  for (const py::handle item : list) images.push_back(image_of(py::reinterpret_borrow<py::object>(item)));
  return images;
}

ImageAllocatorPtr allocator_of(const ImageAllocatorPtr& allocator) {
  if (!allocator)
    throw OptionError("an image has an allocator.", {.node = "MPSImageAllocator", .expected = "MPSImage.default_allocator() or MPSTemporaryImage.default_allocator()",
                                                     .actual = "None", .hint = "leave the default alone"});
  return allocator;
}

void bind_image(py::module_& m) {
  py::class_<ImageAllocator, ImageAllocatorPtr>(m, "MPSImageAllocator", R"(Who makes an image: MPSImage.default_allocator() or MPSTemporaryImage.default_allocator().

Opaque: the choice is kept and saved. The engines here give every image that leaves a graph memory of its own.)")
      .def("__repr__", [](const ImageAllocator& a) { return std::string(a.is_temporary() ? "<MPSTemporaryImage" : "<MPSImage") + ".default_allocator()>"; });
  py::class_<TemporaryImage>(m, "MPSTemporaryImage", "Images that a step may take back; here only their allocator, the default of image nodes.")
      .def_static("default_allocator", &TemporaryImage::default_allocator);
  py::class_<ImageDescriptor>(m, "MPSImageDescriptor", "Size and format of an image: what a padding policy is asked about and answers with.")
      .def(py::init([](ImageFeatureChannelFormat channel_format, int width, int height, int feature_channels, int number_of_images) {
             return ImageDescriptor{width, height, feature_channels, number_of_images, channel_format};
           }),
           "channel_format"_a, "width"_a, "height"_a, "feature_channels"_a, "number_of_images"_a = 1)
      .def_readwrite("width", &ImageDescriptor::width)
      .def_readwrite("height", &ImageDescriptor::height)
      .def_readwrite("feature_channels", &ImageDescriptor::feature_channels)
      .def_readwrite("number_of_images", &ImageDescriptor::number_of_images)
      .def_readwrite("channel_format", &ImageDescriptor::channel_format)
      .def("__eq__", [](const ImageDescriptor& a, const ImageDescriptor& b) { return a == b; }, py::is_operator());

  py::class_<Image, std::shared_ptr<Image>>(m, "MPSImage", py::buffer_protocol(), R"(A batch of images in N, H, W, C order.

``MPSImage(array)`` is a view of a float32 (or, for the reference engine, float64) C-contiguous array of four dimensions: no copy
is made, and the image keeps the array alive. Other arrays are copied to float32, which the log says. ``MPSImage(descriptor)``
is a zeroed image. NumPy, buffers and DLPack take it back without a copy.

>>> import numpy, mpsnn
>>> image = mpsnn.MPSImage(numpy.zeros((1, 28, 28, 1), numpy.float32))
>>> image.width, image.number_of_images
(28, 1)
)")
      .def(py::init(&make_image), "image_descriptor"_a)
      .def(py::init([](const py::object& array) { return image_of(array); }), "array"_a)
      .def_property_readonly("width", &Image::width)
      .def_property_readonly("height", &Image::height)
      .def_property_readonly("feature_channels", &Image::feature_channels)
      .def_property_readonly("number_of_images", &Image::number_of_images)
      .def_property_readonly("shape", [](const Image& image) { return py::tuple(py::cast(dimensions(image.shape()))); }, "(N, H, W, C)")
      .def_readwrite("label", &Image::label)
      .def_static("default_allocator", &Image::default_allocator, "For images that last.")
      .def("numpy", &image_array, "The numbers as an array that shares memory with the image and keeps it alive.")
      .def("__array__", [](const ImagePtr& image, const py::object& dtype, const py::object& copy) {
             return py::module_::import("numpy").attr("array")(image_array(image), "dtype"_a = dtype, "copy"_a = copy.is_none() ? py::none() : copy);
           }, "dtype"_a = py::none(), "copy"_a = py::none())
      .def("__dlpack__", [](const ImagePtr& image, const py::kwargs& options) { return image_array(image).attr("__dlpack__")(**options); })
      .def("__dlpack_device__", [](const ImagePtr& image) { return image_array(image).attr("__dlpack_device__")(); })
      .def_buffer([](Image& image) {
        const bool is_double = image.type() == ElementType::float64;
        const py::ssize_t size = element_bytes(image.type());
        const std::vector<py::ssize_t> shape = dimensions(image.shape());
        return py::buffer_info(image.buffer().data(), size, is_double ? py::format_descriptor<double>::format() : py::format_descriptor<float>::format(), 4, shape,
                               {shape[1] * shape[2] * shape[3] * size, shape[2] * shape[3] * size, shape[3] * size, size}, !may_write(image.buffer()));
      })
      .def("__repr__", [](const Image& image) { return "<MPSImage " + image.shape().text() + (image.type() == ElementType::float64 ? " float64>" : " float32>"); });
}

}  // namespace mpsnn::python
