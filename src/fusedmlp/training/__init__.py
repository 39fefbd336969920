"""The order of events in a training: epochs, schedules, callbacks, history. Engines are known by their interface."""
