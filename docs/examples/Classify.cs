// Classify one image with the model of a package: dotnet run -- PACKAGE IMAGE. Needs the NuGet packages Microsoft.ML.OnnxRuntime
// and SixLabors.ImageSharp. ImageSharp resizes slightly otherwise than Pillow: for equal answers, give images of the model's size.
using System.Text.Json;
using Microsoft.ML.OnnxRuntime;
using Microsoft.ML.OnnxRuntime.Tensors;
using SixLabors.ImageSharp;
using SixLabors.ImageSharp.PixelFormats;
using SixLabors.ImageSharp.Processing;

using var facts = JsonDocument.Parse(File.ReadAllText(Path.Combine(args[0], "package.json")));
var wanted = facts.RootElement.GetProperty("input");
int height = wanted.GetProperty("height").GetInt32(), width = wanted.GetProperty("width").GetInt32();

using var image = Image.Load<Rgb24>(args[1]);
image.Mutate(each => each.AutoOrient().Resize(width, height, KnownResamplers.Triangle));
var pixels = new byte[height * width * 3];
image.CopyPixelDataTo(pixels);

using var session = new InferenceSession(Path.Combine(args[0], "model.onnx"));
var input = NamedOnnxValue.CreateFromTensor("images", new DenseTensor<byte>(pixels, new[] { 1, height, width, 3 }));
using var found = session.Run(new[] { input });

var rates = facts.RootElement.GetProperty("error_rates").EnumerateArray().ToList();
int rate = rates.FindIndex(each => each.GetProperty("max_error").GetDouble() == 0.01); // at most 1 % of the answers are wrong
long answer = found.Single(each => each.Name == "answers").AsTensor<long>()[0, rate];
var classes = facts.RootElement.GetProperty("classes").EnumerateArray().Select(each => each.GetString()).ToList();
Console.WriteLine(answer < 0 ? "not sure" : classes[(int)answer]);
