"""torchvision's FCN on ResNet-50 from scratch, with the settings of its reference training.

SGD at 0.01, polynomial decay, batches of 8: https://github.com/pytorch/vision/tree/main/references/segmentation.
"""

import torch
from PIL import Image
from shared import Timer, files
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.segmentation import fcn_resnet50
from torchvision.transforms.v2.functional import pil_to_tensor


class Crops(Dataset):
    def __init__(self, folder):
        self.images, self.masks = files(folder / "images"), files(folder / "masks")

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        pixels, mask = read(self.images[index]), pil_to_tensor(Image.open(self.masks[index]))[0].long()
        return (pixels.flip(-1), mask.flip(-1)) if torch.rand(()) < 0.5 else (pixels, mask)


def read(path):
    return pil_to_tensor(Image.open(path).convert("RGB")) / 255


def train(images, work, seconds, seed):
    torch.manual_seed(seed)
    data = Crops(images / "train")
    classes = 1 + max(int(mask[mask < 255].max()) for _, mask in data if (mask < 255).any())
    model = fcn_resnet50(weights=None, weights_backbone=None, num_classes=classes).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    criterion = nn.CrossEntropyLoss(ignore_index=255)
    loader = DataLoader(data, batch_size=8, shuffle=True, drop_last=True)
    timer = Timer(seconds)
    while timer.share < 1:
        for pixels, masks in loader:
            if (share := timer.share) == 1:
                break
            optimizer.param_groups[0]["lr"] = 0.01 * (1 - share) ** 0.9
            loss = criterion(model(pixels)["out"], masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.save({"weights": model.state_dict(), "classes": classes}, work / "model.pt")


def predict(test, work):
    saved = torch.load(work / "model.pt", weights_only=True)
    model = fcn_resnet50(weights=None, weights_backbone=None, num_classes=saved["classes"]).eval()
    model.load_state_dict(saved["weights"])
    pixels = torch.stack([read(path) for path in files(test)])
    with torch.no_grad():
        return torch.cat([model(batch)["out"].argmax(1) for batch in pixels.split(32)]).numpy()
