import subprocess
import sys

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from callbacks.figures import Figures
from framework.figures import learning_curve, png


class Line(LightningModule):
    """Fits a line; a user's own module, which knows nothing of this package."""

    monitor, mode = "val/error", "min"

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.counter = 0

    def training_step(self, batch, batch_idx):
        loss = (self.layer(batch[0]) - batch[1]).square().mean()
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.counter += 1
        self.log("val/loss", (self.layer(batch[0]) - batch[1]).square().mean())
        self.log("val/error", float(self.counter))
        self.log("val/other", 0.5)

    def test_step(self, batch, batch_idx):
        self.log("test/loss", (self.layer(batch[0]) - batch[1]).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Drawing(Line):
    def figures(self):
        figure = Figure()
        figure.subplots().plot([0, 1], [0, self.layer.weight.item()])
        return {"line": figure}


@pytest.fixture
def loader():
    x = torch.linspace(-1, 1, 8)[:, None]
    return DataLoader(TensorDataset(x, 3 * x), batch_size=2)


def trainer(tmp_path, *callbacks, logger=False, **options):
    options = {"max_epochs": 3, "num_sanity_val_steps": 1, **options}
    return Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=logger,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False, **options},
    )


def test_a_stock_trainer_gets_the_modules_figures_and_a_learning_curve(tmp_path, loader):
    t = trainer(tmp_path, Figures(), logger=CSVLogger(tmp_path))
    t.fit(Drawing(), loader, loader)
    directory = tmp_path / "lightning_logs" / "version_0" / "figures"
    assert {path.name for path in directory.iterdir()} == {"line.png", "learning_curve.png"}
    assert min(Image.open(directory / "line.png").size) > 100


def test_another_callback_with_figures_is_asked_too(tmp_path, loader):
    class Curve(Callback):
        def figures(self):
            figure = Figure()
            figure.subplots().plot([0, 1])
            return {"curve": figure}

    trainer(tmp_path, Curve(), Figures(every_n_epochs=3)).fit(Line(), loader, loader)
    names = {str(path.relative_to(tmp_path / "figures")) for path in (tmp_path / "figures").rglob("*.png")}
    assert names == {"curve.png", "epochs/curve-0003.png", "learning_curve.png"}


def test_without_a_logger_figures_go_to_the_root_directory(tmp_path, loader):
    trainer(tmp_path, Figures()).fit(Line(), loader, loader)
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["learning_curve.png"]


def test_after_a_test_the_figures_show_the_tested_weights(tmp_path, loader):
    t = trainer(tmp_path, Figures())
    module = Drawing()
    t.fit(module, loader, loader)
    after_fit = (tmp_path / "figures" / "line.png").read_bytes()
    torch.nn.init.constant_(module.layer.weight, -5.0)
    t.test(module, loader, verbose=False)
    after_test = (tmp_path / "figures" / "line.png").read_bytes()
    assert after_fit != after_test
    assert after_test == png(module.figures()["line"])


def test_every_n_epochs_keeps_one_picture_an_epoch(tmp_path, loader):
    trainer(tmp_path, Figures(every_n_epochs=2), max_epochs=5).fit(Drawing(), loader, loader)
    names = sorted(path.name for path in (tmp_path / "figures" / "epochs").iterdir())
    assert names == ["line-0002.png", "line-0004.png"]


def test_the_history_is_what_was_logged_at_the_epochs_it_was_logged(tmp_path, loader):
    callback = Figures()
    trainer(tmp_path, callback, max_epochs=4, check_val_every_n_epoch=2).fit(Line(), loader, loader)
    history = callback.state_dict()["history"]
    assert [epoch for epoch, _ in history["train/loss"]] == [1, 2, 3, 4]
    losses = [loss for _, loss in history["train/loss"]]
    assert losses == sorted(losses, reverse=True)
    # One sanity batch, then four batches a validation: their mean counters are 3.5 and 7.5
    assert history["val/error"] == [[2, 3.5], [4, 7.5]]


def test_validation_within_an_epoch_gets_fractions_of_it(tmp_path, loader):
    callback = Figures()
    t = trainer(tmp_path, callback, max_epochs=2, val_check_interval=2, num_sanity_val_steps=0)
    t.fit(Line(), loader, loader)
    assert [epoch for epoch, _ in callback.state_dict()["history"]["val/loss"]] == [0.5, 1.0, 1.5, 2.0]


def test_the_history_survives_a_checkpoint_loaded_with_weights_only(tmp_path, loader):
    first = Figures()
    t = trainer(tmp_path, first, max_epochs=2, enable_checkpointing=True)
    t.fit(Line(), loader, loader)
    t.save_checkpoint(tmp_path / "last.ckpt")
    second = Figures()
    resumed = trainer(tmp_path, second, max_epochs=4)
    resumed.fit(Line(), loader, loader, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    history = second.state_dict()["history"]
    assert [epoch for epoch, _ in history["train/loss"]] == [1, 2, 3, 4]
    assert history["train/loss"][:2] == first.state_dict()["history"]["train/loss"]


def test_learning_curve_shows_losses_and_the_monitored_metric_of_all_stages():
    history = {
        "train/loss": [(1, 1.0), (2, 0.5)],
        "val/loss": [(1, 1.1)],
        "train/accuracy": [(1, 0.5)],
        "val/accuracy": [(1, 0.4)],
        "val/f1": [(1, 0.3)],
        "empty": [],
    }

    def panels(figure):
        return [[line.get_label() for line in axes.lines] for axes in figure.axes]

    figure = learning_curve(history, "val/accuracy")
    assert panels(figure) == [["train/loss", "val/loss"], ["train/accuracy", "val/accuracy"]]
    assert list(figure.axes[0].lines[0].get_ydata()) == [1.0, 0.5]
    assert panels(learning_curve(history))[1] == ["train/accuracy", "val/accuracy", "val/f1"]
    assert panels(learning_curve({"val/loss": [(1, 1.0)]}, "val/loss")) == [["val/loss"]]
    assert learning_curve({"empty": []}) is None


@pytest.mark.parametrize("options", [{"learning_curve": False}, {"every_n_epochs": 1}])
def test_a_module_without_figures_is_refused_where_they_are_needed(tmp_path, loader, options):
    with pytest.raises(TypeError, match=r"Line has no figures\(\), which Figures needs: a method that returns"):
        trainer(tmp_path, Figures(**options)).fit(Line(), loader, loader)


def test_what_is_not_a_figure_or_not_a_file_name_is_refused(tmp_path, loader):
    class Wrong(Line):
        name, value = "line", 5

        def figures(self):
            return {self.name: self.value}

    with pytest.raises(TypeError, match=r"Wrong.figures\(\) must return matplotlib figures, got int for 'line'"):
        trainer(tmp_path, Figures()).fit(Wrong(), loader, loader)
    Wrong.name = "../line"
    with pytest.raises(ValueError, match=r"must use plain file names, got '\.\./line'"):
        trainer(tmp_path, Figures()).fit(Wrong(), loader, loader)


def test_every_n_epochs_must_be_positive():
    with pytest.raises(ValueError, match="every_n_epochs must be at least 1 or null, got 0"):
        Figures(every_n_epochs=0)


def test_a_trial_run_draws_but_writes_nothing(tmp_path, loader):
    class Counting(Drawing):
        drawn = 0

        def figures(self):
            Counting.drawn += 1
            return super().figures()

    trainer(tmp_path, Figures(), fast_dev_run=True).fit(Counting(), loader, loader)
    assert Counting.drawn == 1
    assert not (tmp_path / "figures").exists()


def test_pyplot_is_neither_imported_nor_disturbed(tmp_path, loader):
    from matplotlib import pyplot

    mine = pyplot.figure()

    class WithPyplot(Line):
        def figures(self):
            return {"line": pyplot.subplots()[0]}

    trainer(tmp_path, Figures()).fit(WithPyplot(), loader, loader)
    assert pyplot.get_fignums() == [mine.number]
    assert (tmp_path / "figures" / "line.png").exists()
    pyplot.close(mine)
    code = (
        "import sys; from framework.figures import png, close; from matplotlib.figure import Figure\n"
        "figure = Figure(); assert png(figure).startswith(b'\\x89PNG'); close(figure)\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tensorboard_receives_the_figures(tmp_path, loader):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    trainer(tmp_path, Figures(), logger=logger).fit(Drawing(), loader, loader)
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir).Reload()
    assert set(events.Tags()["images"]) == {"figures/line", "figures/learning_curve"}
    assert events.Images("figures/line")[0].step == 12


def test_wandb_receives_the_figures(tmp_path, loader, monkeypatch):
    sent = {}

    class Wandb(CSVLogger):
        """Stands for W&B's logger, which has this method; the overlay's test reads a real offline run."""

        def log_image(self, key, images, step=None):
            sent[key] = (images, step)

    trainer(tmp_path, Figures(), logger=Wandb(tmp_path)).fit(Drawing(), loader, loader)
    assert set(sent) == {"figures/line", "figures/learning_curve"}
    (path,), step = sent["figures/line"]
    assert Image.open(path).format == "PNG"
    assert step == 12
