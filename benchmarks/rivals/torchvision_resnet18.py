"""A plain script: torchvision's ResNet-18 from scratch, random crops and flips, SGD with a one-cycle schedule."""

import torch
from PIL import Image
from shared import Timer, files
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms import v2

NORMALIZE = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)]


def train(images, work, seconds, seed):
    torch.manual_seed(seed)
    side = Image.open(next((images / "train").rglob("*.png"))).width
    augment = [v2.RandomCrop(side, padding=side // 8), v2.RandomHorizontalFlip(), *NORMALIZE]
    data = ImageFolder(images / "train", v2.Compose(augment))
    loader = DataLoader(data, batch_size=128, shuffle=True, drop_last=True)
    model = resnet18(num_classes=len(data.classes)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    timer = Timer(seconds)
    while timer.share < 1:
        for pixels, labels in loader:
            if (share := timer.share) == 1:
                break
            optimizer.param_groups[0]["lr"] = 0.1 * min(share / 0.2, (1 - share) / 0.8)
            loss = criterion(model(pixels), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.save({"weights": model.state_dict(), "classes": data.classes}, work / "model.pt")


def predict(test, work):
    saved = torch.load(work / "model.pt", weights_only=True)
    model = resnet18(num_classes=len(saved["classes"])).eval()
    model.load_state_dict(saved["weights"])
    transform = v2.Compose(NORMALIZE)
    pixels = torch.stack([transform(Image.open(path).convert("RGB")) for path in files(test)])
    with torch.no_grad():
        return saved["classes"], torch.cat([model(batch).softmax(1) for batch in pixels.split(128)]).numpy()
