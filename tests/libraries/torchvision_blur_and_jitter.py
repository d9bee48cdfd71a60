"""Two dear transforms of torchvision v1 on PIL images: the colour jitter is the dearer one, the blur comes second."""

import torch
from training import ask_for_torchvision, photograph, train

ask_for_torchvision()
from torch.utils.data import DataLoader, Dataset  # noqa: E402
from torchvision import transforms  # noqa: E402


class Pictures(Dataset):
    def __init__(self, transform):
        self.pictures = [photograph(320, 320, number) for number in range(64)]
        self.transform = transform

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        picture = self.pictures[index]
        if self.transform is not None:
            picture = self.transform(picture)
        return picture, index % 10


def main() -> None:
    torch.manual_seed(0)
    augment = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.4, 0.4, 0.4, 0.1),  # the limit
            transforms.CenterCrop(128),
            transforms.GaussianBlur(9),  # the second
            transforms.ToTensor(),
        ]
    )
    loader = DataLoader(Pictures(augment), batch_size=8, shuffle=True, num_workers=1, persistent_workers=True)
    train(loader, 56, lambda batch: batch[0])


if __name__ == "__main__":
    main()
