package com.example.vision

import android.content.Context
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel

/** The deployed model. It takes and gives float32, in the model's own order of axes; scale pixels as for training. */
class Classifier(context: Context) : AutoCloseable {
    private val model =
        CompiledModel.create(context.assets, "model.tflite", CompiledModel.Options(Accelerator.CPU))
    private val inputs = model.createInputBuffers()
    private val outputs = model.createOutputBuffers()

    /** The scores of one image; the largest is the answer. */
    fun scores(pixels: FloatArray): FloatArray {
        inputs[0].writeFloat(pixels)
        model.run(inputs, outputs)
        return outputs[0].readFloat()
    }

    override fun close() {
        (inputs + outputs).forEach { it.close() }
        model.close()
    }
}
