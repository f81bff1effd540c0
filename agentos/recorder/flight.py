class FlightRecorder:
    pass
