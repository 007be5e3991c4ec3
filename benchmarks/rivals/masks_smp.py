"""segmentation_models_pytorch: the U-Net on ResNet-34 of its quick start, from scratch, as in its example of several classes.

https://github.com/qubvel-org/segmentation_models.pytorch: Dice loss, Adam at 2e-4 with a cosine schedule, flips.
"""

import math

import segmentation_models_pytorch as smp
import torch
from PIL import Image
from shared import Timer, files
from torch.utils.data import DataLoader, Dataset
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
    return pil_to_tensor(Image.open(path).convert("L")) / 255


def train(images, work, seconds, seed):
    torch.manual_seed(seed)
    data = Crops(images / "train")
    classes = 1 + max(int(mask[mask < 255].max()) for _, mask in data if (mask < 255).any())
    model = smp.Unet("resnet34", encoder_weights=None, in_channels=1, classes=classes).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
    criterion = smp.losses.DiceLoss("multiclass", from_logits=True, ignore_index=255)
    loader = DataLoader(data, batch_size=32, shuffle=True, drop_last=True)
    timer = Timer(seconds)
    while timer.share < 1:
        for pixels, masks in loader:
            if (share := timer.share) == 1:
                break
            optimizer.param_groups[0]["lr"] = 1e-4 * (1 + math.cos(math.pi * share))
            loss = criterion(model(pixels), masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.save_pretrained(work / "model")


def predict(test, work):
    model = smp.from_pretrained(work / "model").eval()
    pixels = torch.stack([read(path) for path in files(test)])
    with torch.no_grad():
        return torch.cat([model(batch).argmax(1) for batch in pixels.split(32)]).numpy()
