// Where an epoch of mini-batches stands: numbers in device memory, so that a captured step can be replayed as it is.

enum Progress {
    BATCH,      // batches of this epoch done
    LOSS,       // of these: Σ of their shares in the epoch's loss
    RATE,       // the learning rate of the epoch
    STEPS,      // optimizer steps before the epoch
    STEP_RATE,  // the rate of the step at hand, with Adam's correction
    FACTOR      // what makes sums over the batch's samples a gradient
};
